"""Danskin's descent direction, and its controls, as optax transformations."""

import jax
import jax.numpy as jnp
import optax

from ddi_jax.checks import check_number
from ddi_jax.directions.min_norm import check_solver, solve
from ddi_jax.directions.weighting import WeightingInput, Weights, weighted_direction
from ddi_jax.numerics.precision import accumulation_dtype
from ddi_jax.reuse import reused


@reused
def danskin_direction(
  *,
  normalize: bool = True,
  bundle_step: float | None = None,
  loss_tolerance: float | None = None,
  solver: str = "active_set",
  tolerance: float | None = None,
  max_iterations: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Danskin's descent direction: the minimum-norm point of the K gradients' hull.

    z = argmin ||sum_k a_k g_k||,  a on the simplex;  out = z / ||z||  (or z)

  The step along -out descends on all K candidates at once: <z, g_k> >= ||z||^2 for
  every k (Fliege and Svaiter, 2000; Desideri, 2012).  If every maximiser's gradient is
  within h of a g_k, the robust loss has directional derivative at most h - ||z|| along
  -z / ||z||.  Latorre et al. (2023), section 3.

  The incoming updates are gradients with leaves `[K, *param]`, for example from
  `ddi_jax.restart_gradients`, so this must be the first transformation of a chain.  The
  outgoing updates have leaves `[*param]` of the same dtype.  They are gradient-like: a
  later `optax.sgd` supplies the minus sign.  `init` takes ordinary parameters.  Inner
  products are taken over all parameters and accumulated in float32 at least.

  Candidates are seldom maximisers, and the plain minimum-norm point prefers the
  smallest gradient, often that of the weakest attack.  Two forms use the candidates'
  losses l_k, which `update` then takes as the extra argument `losses`, `[K]`:

  *Active set* (`loss_tolerance` = eps): only candidates with l_k >= max l - eps count.
  z is the minimum-norm point of their gradients, so <z, g_k> >= ||z||^2 for these
  candidates.  The losses of the others are more than eps lower, and do not limit a step
  s as long as s (||z||^2 - <z, g_k>) < eps for them (Demyanov and Malozemov, 1974: the
  eps-steepest descent).

  *Proximal bundle* (`bundle_step` = t): z minimises t/2 ||z||^2 - sum_k a_k l_k.  Then
  -t z minimises the model max_k [l_k + <g_k, d>] + ||d||^2 / (2 t).  With e_k = max l -
  l_k, every k has l_k - t <g_k, z> <= max l - (t ||z||^2 + sum_j a_j e_j): after the
  step, all linearised losses are below the greatest loss by at least this amount.
  Moreover <z, g_k> >= ||z||^2 for the candidates of greatest loss (Lemarechal, 1975;
  Kiwiel, 1990).  t is the step that the model is made for: with `normalize=False` and
  plain `optax.sgd(t)` the step is the model's minimiser.  Equal losses or t -> infinity
  give the plain form; t -> 0 gives the gradient of the candidate of greatest loss.

  If the hull contains the origin, no direction descends on all K, and zeros are
  returned.  Zeros are also returned if z is so small compared with the gradients (in
  float32, below about 1e-3) that rounding spoils <z, g_k> > 0.  A NaN in the gradients
  or the losses makes the result NaN.

  Args:
    normalize: whether to scale to unit norm, as in Algorithm 1 of Latorre et al.
      (2023).  This changes the effective learning rate; compare with controls that are
      scaled too.
    bundle_step: t > 0 of the proximal-bundle form, or None; infinity is the plain form.
    loss_tolerance: eps >= 0 of the active-set form, or None; not with `bundle_step`.
    solver: solver of the minimum-norm problem, see `ddi_jax.min_norm_weights`.
    tolerance: the gap that counts as converged, see `ddi_jax.min_norm_weights`.
    max_iterations: limit of the solver's iterations, see `ddi_jax.min_norm_weights`.

  Returns:
    A transformation whose state is a `DirectionState`.  Inside a chain, read its fields
    with `optax.tree_utils.tree_get(state, "cosine")`.

  Raises:
    ValueError: when built, for a setting out of its range.  From `update`: for updates
      that do not have the shape `[K, *param]`, that have different K or K = 0, or that
      are not floating point; and for losses that are missing although a form needs
      them, or that are not `[K]`.

  Example:
    >>> import jax.numpy as jnp, optax, ddi_jax
    >>> optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1))
    >>> params = {"w": jnp.array([1.0, 0.0])}
    >>> state = optimizer.init(params)
    >>> gradients = {"w": jnp.array([[2.0, 2.0], [2.0, -2.0]])}  # K = 2
    >>> updates, state = optimizer.update(gradients, state, params)
    >>> updates["w"]
    Array([-0.1, -0. ], dtype=float32)
    >>> optax.tree_utils.tree_get(state, "norm")
    Array(2., dtype=float32)

    With a bundle, the candidate of greatest loss counts for more:

    >>> bundle = ddi_jax.danskin_direction(normalize=False, bundle_step=0.1)
    >>> losses = jnp.array([1.0, 0.4])
    >>> bundle.update(gradients, bundle.init(params), params, losses=losses)[0]["w"]
    Array([2. , 1.5], dtype=float32)
  """
  check_solver(solver, tolerance, max_iterations)
  if bundle_step is not None and loss_tolerance is not None:
    raise ValueError(
      f"bundle_step and loss_tolerance are for two forms, so one must be None; got "
      f"{bundle_step!r} and {loss_tolerance!r}."
    )
  check_number("bundle_step", bundle_step, "(0, inf]", optional=True)
  check_number("loss_tolerance", loss_tolerance, "[0, inf]", optional=True)

  def slacks_of(inputs: WeightingInput) -> jax.Array:
    if bundle_step is None and loss_tolerance is None:
      return jnp.zeros_like(inputs.inner.offsets)
    form = "bundle_step" if loss_tolerance is None else "loss_tolerance"
    losses = inputs.required_losses(form)
    shortfall = jnp.max(losses) - losses
    if loss_tolerance is not None:
      excluded = jnp.where(shortfall > loss_tolerance, jnp.inf, 0)
      return jnp.where(jnp.isnan(shortfall), jnp.nan, excluded)
    assert bundle_step is not None
    return shortfall / bundle_step / inputs.scale / inputs.scale

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    slacks = slacks_of(inputs)
    solution = solve(
      inputs.inner,
      slacks,
      solver=solver,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
    return Weights(solution.weights, slacks)

  return weighted_direction(jax.jit(weighting), normalize=normalize)


@reused
def average_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The mean of the K gradients: a control that gets much of the gain for free.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.average_direction()
    >>> params, gradients = jnp.zeros(2), jnp.array([[2.0, 2.0], [2.0, -2.0]])
    >>> direction.update(gradients, direction.init(params), params)[0]
    Array([2., 0.], dtype=float32)
  """

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    size = len(inputs.inner.offsets)
    return jnp.full(size, 1 / size, accumulation_dtype())

  return weighted_direction(weighting, normalize=normalize)


@reused
def first_restart_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The first of the K gradients: the direction of PGD adversarial training.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.first_restart_direction()
    >>> params, gradients = jnp.zeros(2), jnp.array([[2.0, 2.0], [2.0, -2.0]])
    >>> direction.update(gradients, direction.init(params), params)[0]
    Array([2., 2.], dtype=float32)
  """

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    return jax.nn.one_hot(0, len(inputs.inner.offsets), dtype=accumulation_dtype())

  return weighted_direction(weighting, normalize=normalize)
