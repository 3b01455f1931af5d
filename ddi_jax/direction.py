"""From K gradients to one direction, as optax transformations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddi_jax import gradient_matrix
from ddi_jax.gradient_matrix import KeptGradients, ShiftedGram
from ddi_jax.min_norm import check_solver, solve
from ddi_jax.precision import accumulation_dtype
from ddi_jax.recomputation import RecomputedGradients


class Candidates(NamedTuple):
  """What a direction is made from.

  Attributes:
    products: inner products of the K gradients / scale.
    scale: scalar > 0.
    losses: `[K]`, or None if `update` was not given them.
    key: a key, or None if `update` was not given one.
  """

  products: ShiftedGram
  scale: jax.Array
  losses: jax.Array | None
  key: jax.Array | None


class Weights(NamedTuple):
  """A combination of the gradients, and what it promises.

  Attributes:
    weights: `[K]`.
    slacks: `[K]`, the e in the promise that z, the combination, keeps to every k:
      <z, g_k> >= ||z||^2 + e'weights - e_k > 0 where e_k <= e'weights.  In units of
      `Candidates.products`.  None: nothing is promised.
    factor: what z is multiplied by in the end, where weights times it would overflow.
  """

  weights: jax.Array
  slacks: jax.Array | None = None
  factor: jax.Array | float = 1.0


Weighting = Callable[[Candidates], Weights]


class DirectionState(NamedTuple):
  """Diagnostics of the last direction, each a scalar; zeros before the first update.

  They describe the combination z = sum_k weights_k g_k itself: before unit-norm
  scaling, and before whatever follows in the chain.

  Attributes:
    norm: ||z||.
    gap: relative duality gap, `1 - min_k <z, g_k> / ||z||^2`, at least 0.  Below 1, the
      step along -z descends on all K linearised losses; 0 is the min-norm point.
      0 where z = 0.  For the forms of `danskin_direction` that use the losses, the
      gap of their problem, see `ddi_jax.MinNormSolution`.
    cosine: mean cosine of the pairs of gradients (1 for K = 1).
    min_cosine: the least of them.  Negative: some gradients are in conflict.
    support: number of gradients with positive weight (above 1e-6).
    relative_norm: ||z|| / min_k ||g_k||; 1 where both are zero.
  """

  norm: jax.Array
  gap: jax.Array
  cosine: jax.Array
  min_cosine: jax.Array
  support: jax.Array
  relative_norm: jax.Array


def danskin_direction(
  *,
  normalize: bool = True,
  bundle_step: float | None = None,
  loss_tolerance: float | None = None,
  method: str = "active_set",
  tolerance: float | None = None,
  max_iterations: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Danskin's descent direction: the minimum-norm point of the K gradients' hull.

    z = argmin ||sum_k a_k g_k||,  a on the simplex;  out = z / ||z||  (or z)

  The step along -out descends on all K candidates at once: <z, g_k> >= ||z||^2 for
  every k (Fliege and Svaiter, 2000; Desideri, 2012).  If every maximiser's gradient is
  within h of a g_k, the robust loss has directional derivative at most h - ||z|| along
  -z / ||z||.  Latorre et al. (2023), section 3.

  The updates that come in are gradients with leaves `[K, *param]`, from
  `ddi_jax.restart_gradients` say, so this must be the first of a chain; out come leaves
  `[*param]` of the same dtype, gradient-like: a later `optax.sgd` supplies the minus
  sign.  `init` takes ordinary parameters.  Inner products go over all parameters and
  are accumulated in float32 at least.

  Candidates are seldom maximisers, and the plain minimum-norm point prefers the
  smallest gradient, often that of the weakest attack.  Two forms use the candidates'
  losses l_k, which `update` then takes as the extra argument `losses`, `[K]`:

  *Active set* (`loss_tolerance` = eps): only candidates with l_k >= max l - eps count.
  z is the minimum-norm point of their gradients, <z, g_k> >= ||z||^2 for these, and the
  rest, being eps lower, is not in the way of a step s as long as
  s (||z||^2 - <z, g_k>) < eps for them (Demyanov and Malozemov, 1974: the
  eps-steepest descent).

  *Proximal bundle* (`bundle_step` = t): z minimises t/2 ||z||^2 - sum_k a_k l_k.  Then
  -t z minimises the model max_k [l_k + <g_k, d>] + ||d||^2 / (2 t), and with
  e_k = max l - l_k every k has l_k - t <g_k, z> <= max l - (t ||z||^2 + sum_j a_j e_j):
  all linearised losses end below the greatest one, by a stated amount, and
  <z, g_k> >= ||z||^2 for the candidates of greatest loss (Lemarechal, 1975; Kiwiel,
  1990).  t is the step that the model is made for: with `normalize=False` and plain
  `optax.sgd(t)` the step is the model's minimiser.  Equal losses or t -> infinity give
  the plain form, t -> 0 the candidate of greatest loss.

  Where the hull holds the origin no direction descends on all K, and zeros are
  returned; so they are where z is so small against the gradients (in float32, below
  about 1e-3) that rounding spoils <z, g_k> > 0.  A NaN in the gradients or the losses
  comes out as NaN.

  Args:
    normalize: whether to scale to unit norm, as published.  This changes the effective
      learning rate; compare with controls that are scaled too.
    bundle_step: t > 0 of the proximal-bundle form, or None.
    loss_tolerance: eps >= 0 of the active-set form, or None; not with `bundle_step`.
    method: see `ddi_jax.min_norm_weights`, as are `tolerance` and `max_iterations`.
    tolerance: of the gap.
    max_iterations: of the solver.

  Returns:
    A transformation whose state is a `DirectionState`; inside a chain its fields are
    reached with `optax.tree_utils.tree_get(state, "cosine")`.

  Raises:
    ValueError: when built, for a setting out of its range; from `update`, for updates
      without the shape `[K, *param]`, with different K or K = 0, or that are not
      floating point, and for losses that are missing where a form needs them or not
      `[K]`.

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
  check_solver(method, tolerance, max_iterations)
  if bundle_step is not None and loss_tolerance is not None:
    raise ValueError(
      f"bundle_step and loss_tolerance are two forms; got {bundle_step!r} and "
      f"{loss_tolerance!r}, one must be None."
    )
  if isinstance(bundle_step, (int, float)) and not bundle_step > 0:
    raise ValueError(f"bundle_step must be None or > 0, got {bundle_step!r}.")
  if isinstance(loss_tolerance, (int, float)) and not loss_tolerance >= 0:
    raise ValueError(f"loss_tolerance must be None or >= 0, got {loss_tolerance!r}.")

  def slacks_of(candidates):
    if bundle_step is None and loss_tolerance is None:
      return jnp.zeros_like(candidates.products.products)
    form = "bundle_step" if loss_tolerance is None else "loss_tolerance"
    shortfall = required_losses(candidates, form)
    shortfall = jnp.max(shortfall) - shortfall
    if loss_tolerance is not None:
      excluded = jnp.where(shortfall > loss_tolerance, jnp.inf, 0)
      return jnp.where(jnp.isnan(shortfall), jnp.nan, excluded)
    return shortfall / bundle_step / candidates.scale / candidates.scale

  def weighting(candidates):
    slacks = slacks_of(candidates)
    solution = solve(
      candidates.products,
      slacks,
      method=method,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
    return Weights(solution.weights, slacks)

  return weighted_direction(weighting, normalize)


def average_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The mean of the K gradients: the control that gets much of the gain for free.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.
  """

  def weighting(candidates):
    size = len(candidates.products.products)
    return Weights(jnp.full(size, 1 / size, accumulation_dtype()))

  return weighted_direction(weighting, normalize)


def first_restart_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The first of the K gradients: what PGD adversarial training steps along.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.
  """

  def weighting(candidates):
    size = len(candidates.products.products)
    return Weights(jax.nn.one_hot(0, size, dtype=accumulation_dtype()))

  return weighted_direction(weighting, normalize)


def required_losses(candidates: Candidates, needed_by: str) -> jax.Array:
  """The candidates' losses, `[K]`.

  Raises:
    ValueError: if `update` was not given them.
  """
  if candidates.losses is None:
    raise ValueError(
      f"{needed_by} needs the candidates' losses: "
      "update(gradients, state, params, losses=losses) with losses [K]."
    )
  return candidates.losses


def weighted_direction(
  weighting: Weighting, normalize: bool
) -> optax.GradientTransformationExtraArgs:
  """A transformation that combines the K gradients with `weighting(candidates)`.

  Where the weighting makes a promise that rounding breaks, the combination counts as
  stationary, and zeros come out.
  """

  def init(params):
    del params
    zero = jnp.zeros((), accumulation_dtype())
    return DirectionState(*(zero,) * len(DirectionState._fields))

  def update(updates, state, params=None, *, losses=None, key=None, **extra_args):
    del state, extra_args
    if isinstance(updates, (KeptGradients, RecomputedGradients)):
      gradients = updates
    else:
      gradients = KeptGradients(updates, params)
    products, scale = gradients.inner
    size = len(products.products)
    if losses is not None:
      losses = jnp.asarray(losses, accumulation_dtype())
      if losses.shape != (size,):
        raise ValueError(
          f"losses must have shape [K] = ({size},), one per candidate (a mean over the "
          f"batch, say), got {losses.shape}."
        )
    weights, slacks, factor = weighting(Candidates(products, scale, losses, key))
    gram = products.gram()
    combination = gradients.combine(weights)
    descents = gradients.descents(weights, combination)
    norm = gradient_matrix.scaled_norm(combination, scale, gradients.axis_name)
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    rounding = size * jnp.finfo(gram.dtype).eps
    stationary = norm <= rounding * jnp.sum(weights * norms)
    mean_slack = jnp.zeros((), gram.dtype)
    if slacks is not None:
      mean_slack = jnp.sum(jnp.where(weights > 0, slacks * weights, 0))
      stationary |= jnp.any((slacks <= mean_slack) & (descents <= 0))
    value = norm**2 + mean_slack
    promised = value if slacks is None else value - slacks
    gap = jnp.max(promised - descents) / jnp.maximum(value, jnp.finfo(norm.dtype).tiny)
    divisor = norm * scale if normalize else 1 / factor
    divisor = jnp.where(stationary, 1, divisor)

    direction = jax.tree.map(
      lambda leaf: jnp.where(stationary, 0, leaf / divisor), combination
    )
    cosines = gradient_matrix.pairwise_cosines(gram)
    smallest = norms.min()
    relative_norm = jnp.where(
      (norm == 0) & (smallest == 0), 1, norm / smallest * factor
    )
    state = DirectionState(
      norm=jnp.where(stationary, 0, norm * (scale * factor)),
      gap=jnp.where(stationary, 0, jnp.maximum(gap, 0)),
      cosine=cosines.mean(),
      min_cosine=cosines.min(),
      support=jnp.sum(weights > 1e-6).astype(gram.dtype),
      relative_norm=jnp.where(stationary & (smallest > 0), 0, relative_norm),
    )
    return gradients.cast(direction), state

  return optax.GradientTransformationExtraArgs(init, update)
