"""The proximal step on the robust loss, linearised at candidates of every example."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import loops
from ddi_jax.gradient_matrix import KeptGradients
from ddi_jax.min_norm import solve
from ddi_jax.precision import at_least_float32
from ddi_jax.restarts import LossFn, check_and_widen, check_at_a_time, checked_losses

PER = ("example", "batch")


class ProximalInfo(NamedTuple):
  """What is known of a proximal step.

  Attributes:
    weights: A, `[K, B]`; each example's sum to 1.  Equal columns per batch.
    losses: `loss_fn` on each candidate, `[K, B]`.
    aux: the auxiliary output of `loss_fn`, leaves `[K, ...]`; None without `has_aux`.
    predicted_decrease: by how much the mean of the examples' greatest losses falls (per
      batch, the greatest of the K batches' mean losses), as linearised, with the step
      -t z: at least t ||z||^2 - gap.
    gap: the duality gap >= 0, in units of the loss: the model's value, proximal term
      included, is at most so far above the least one.
    iterations: vertices added.
    passes: what it cost, in forward passes over B examples: a gradient counts as 3, a
      Jacobian-vector product as 2.
  """

  weights: jax.Array
  losses: jax.Array
  aux: Any
  predicted_decrease: jax.Array
  gap: jax.Array
  iterations: jax.Array
  passes: jax.Array


class _State(NamedTuple):
  # Slot 0 is the current point, the others are past vertices; leaves [slots, *param].
  gradients: chex.ArrayTree
  weights: jax.Array  # [slots, K, G]
  used: jax.Array  # [slots] bool
  linearised: jax.Array  # [K, G], losses after the step -t z, above the worst before
  gap: jax.Array
  decrease: jax.Array
  iterations: jax.Array


def proximal_danskin_gradient(
  loss_fn: LossFn,
  params: chex.ArrayTree,
  candidates: jax.Array,
  labels: Any,
  *,
  step: float | jax.Array,
  per: str = "example",
  valid: jax.Array | None = None,
  iterations: int = 8,
  tolerance: float = 0.01,
  memory: int = 4,
  mixes_examples: bool = False,
  batch_axis: str | tuple[str, ...] | None = None,
  loop: str = "auto",
  has_aux: bool = False,
  at_a_time: int | None = None,
) -> tuple[chex.ArrayTree, ProximalInfo]:
  """The gradient z whose step -t z minimises a model of the robust loss.

  The model holds every example's loss l_bk at each of its candidates, with gradient
  g_bk there:

    min over d of (1/B) sum_b max_k [l_bk + <g_bk, d>] + ||d||^2 / (2 t)

  Its dual is over A, a point of the simplex per example: minimise
  t/2 ||z||^2 - (1/B) sum_bk A_bk l_bk, with z = (1/B) sum_bk A_bk g_bk; then d = -t z.
  t -> 0 gives the gradient at each example's worst candidate, t -> infinity the
  minimum-norm point of the hull of all K^B batches that the candidates make up.  Per
  batch, one weight vector is shared by all examples, and the model is that of
  `ddi_jax.danskin_direction` with `bundle_step`.  (Prox-linear and bundle methods:
  Lemarechal, 1975; Kiwiel, 1990.  Model-based stochastic optimisation: Davis and
  Drusvyatskiy, 2019; Asi and Duchi, 2019.)

  No example's gradient is computed.  Frank-Wolfe steps from the worst candidates on:
  one Jacobian-vector product of all K B losses along z gives every <g_bk, z>; the next
  vertex takes each example's greatest l_bk - t <g_bk, z>; one gradient of a batch made
  up of these is the vertex' g.  Then z becomes the best combination of the old z, the
  new vertex and the last few before it (`memory`), found exactly.

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`, or (losses, aux);
      differentiable in forward and in reverse mode.
    params: pytree of floating-point arrays; lower precision is cast to float32.
    candidates: `[K, B, ...]`, from one source or several, concatenated.
    labels: a pytree with leaves `[B, ...]`, handed to `loss_fn`.
    step: t > 0, the length for which the model is made: with plain SGD the learning
      rate.  A scalar array is allowed.
    per: "example", or "batch" for one weight vector shared by all examples.
    valid: bool `[K, B]`, False where an example has no such candidate; what stands
      there is finite but does not count.  Each example needs one that is.  None: all.
      Not per batch.
    iterations: at most so many vertices after the first, >= 0.
    tolerance: stop once the gap is at most this fraction of the predicted decrease,
      >= 0.
    memory: vertices kept beside z, >= 1.  1 is plain Frank-Wolfe with exact line
      search, `iterations` its fully corrective form, which needs fewer iterations for
      a small gap.  Each takes the memory of a gradient.
    mixes_examples: whether an example's loss depends on the rest of its batch, as with
      BatchNorm in training mode.  Then a vertex' gradient is summed over the K batches
      as they are, at K times the cost.
    batch_axis: inside `jax.shard_map(..., check_vma=False)` or `jax.vmap`, the axis (or
      axes) over which the batch is split: z is then that of the whole batch, the same
      on every device, and weights, losses and aux are those of this device's examples.
    loop: over the K candidates: "unroll", "loop" (`lax.map`), "vmap" or "auto", see
      docs/benchmarks.md.
    has_aux: whether `loss_fn` returns (losses, aux).
    at_a_time: compute at most so many at once, see `ddi_jax.restart_candidates`.

  Returns:
    (z, leaves `[*param]` in float32 at least; `ProximalInfo`).

  Raises:
    ValueError: for an argument outside its range, losses or a mask of another shape,
      parameters that are not floating point, or a `batch_axis` that `jax.shard_map`
      checks for replication, where gradients would be summed over it twice.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params - y) ** 2
    >>> candidates = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # K = 2, B = 1
    >>> gradient, info = ddi_jax.proximal_danskin_gradient(
    ...     loss_fn, jnp.array([2.0, 1.9]), candidates, jnp.zeros(1), step=0.1)
    >>> [round(float(weight), 2) for weight in info.weights.ravel()]
    [0.6, 0.4]
    >>> [round(float(part), 2) for part in gradient]
    [2.41, 1.51]
  """
  _check_settings(step, per, iterations, tolerance, memory)
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap"))
  check_at_a_time("at_a_time", at_a_time, loop)
  params = jax.tree_util.tree_map_with_path(check_and_widen, params)
  count, batch = candidates.shape[:2]
  _check_valid(valid, per, (count, batch))
  _check_axis(batch_axis, candidates)

  network_losses = checked_losses(loss_fn, labels, batch, has_aux)

  def losses_of(params, inputs):
    losses, aux = network_losses(params, inputs)
    return at_least_float32(losses), aux

  def slopes_of(tangent, inputs):
    return jax.jvp(lambda p: losses_of(p, inputs)[0], (params,), (tangent,))[1]

  def weighted_gradient(inputs, weights):
    def total(params):
      return jnp.sum(weights * losses_of(params, inputs)[0]) / batch

    return over_devices(jax.grad(total)(params))

  def over_devices(means):
    return means if batch_axis is None else jax.lax.pmean(means, batch_axis)

  def over_candidates(fn):
    return loops.map_resolved(fn, candidates, loop, at_a_time)

  def grouped(values):
    """`[K, B]` -> `[K, G]`: of those that share their weights, the mean."""
    if per == "example":
      return values
    return over_devices(values.mean(axis=1, keepdims=True))

  def vertex_gradient(choice):
    """At candidate choice[g] of group g."""
    if not mixes_examples or per == "batch":
      chosen = candidates[jnp.broadcast_to(choice, batch), jnp.arange(batch)]
      return weighted_gradient(chosen, jnp.ones(batch))
    chosen = jax.nn.one_hot(choice, count, axis=0)

    def add(total, pair):
      return jax.tree.map(jnp.add, total, weighted_gradient(*pair)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    unroll = loops.resolve(loop, weighted_gradient, candidates[0], chosen[0])
    pairs = (candidates, chosen)
    return jax.lax.scan(add, zeros, pairs, unroll=unroll == "unroll")[0]

  losses, aux = over_candidates(lambda inputs: losses_of(params, inputs))
  group_losses = grouped(losses)
  worst = jnp.max(_masked(group_losses, valid), axis=0)
  shortfall = worst[None] - group_losses

  def assess(gradient, weights):
    """(Losses after the step -t z, gap, decrease of the greatest) as linearised."""
    slopes = over_candidates(lambda inputs: slopes_of(gradient, inputs))
    # Above the worst before: losses themselves would drown a small step.
    after = -shortfall - step * grouped(slopes)
    greatest = jnp.max(_masked(after, valid), axis=0)
    gap = over_devices(_mean_under(weights, greatest[None] - after))
    return after, gap, over_devices(-jnp.mean(greatest))

  def start():
    choice = jnp.argmax(_masked(group_losses, valid), axis=0)
    gradient = vertex_gradient(choice)
    weights = jax.nn.one_hot(choice, count, axis=0, dtype=losses.dtype)
    slots = 1 + min(memory, max(iterations, 1))

    def in_all_slots(leaf):
      return jnp.broadcast_to(leaf, (slots, *leaf.shape))

    return _State(
      jax.tree.map(in_all_slots, gradient),
      in_all_slots(weights),
      jnp.arange(slots) == 0,
      *assess(gradient, weights),
      jnp.zeros((), jnp.int32),
    )

  def advance(state):
    choice = jnp.argmax(_masked(state.linearised, valid), axis=0)
    slot = 1 + state.iterations % (len(state.used) - 1)
    gradients = jax.tree.map(
      lambda kept, new: kept.at[slot].set(new), state.gradients, vertex_gradient(choice)
    )
    vertex = jax.nn.one_hot(choice, count, axis=0, dtype=losses.dtype)
    weights = state.weights.at[slot].set(vertex)
    used = state.used.at[slot].set(True)
    # How far the mean of the losses is below that of the greatest, in every slot.
    below = over_devices(jax.vmap(_mean_under, (0, None))(weights, shortfall))
    best = _best_combination(gradients, jnp.where(used, below, jnp.inf), step)
    gradient = jax.tree.map(
      lambda new, kept: new.astype(kept.dtype),
      KeptGradients(gradients).combine(best),
      gradients,
    )
    point = jnp.tensordot(best.astype(weights.dtype), weights, 1, precision="highest")
    return _State(
      jax.tree.map(lambda kept, new: kept.at[0].set(new), gradients, gradient),
      weights.at[0].set(point),
      used,
      *assess(gradient, point),
      state.iterations + 1,
    )

  def unfinished(state):
    allowed = jnp.maximum(tolerance * state.decrease, 0)
    return (state.iterations < iterations) & (state.gap > allowed)

  state = start()
  if iterations and count > 1:
    state = jax.lax.while_loop(unfinished, advance, state)
  gradient_passes = 3 * count if mixes_examples and per == "example" else 3
  return jax.tree.map(lambda leaf: leaf[0], state.gradients), ProximalInfo(
    weights=jnp.broadcast_to(state.weights[0], losses.shape),
    losses=losses,
    aux=aux,
    predicted_decrease=state.decrease,
    gap=state.gap,
    iterations=state.iterations,
    passes=count + (state.iterations + 1) * (gradient_passes + 2 * count),
  )


def _best_combination(gradients, below, step):
  """The least t/2 ||z||^2 + below of all points between the slots': weights."""
  inner, scale = KeptGradients(gradients).inner
  # Where the quotient overflows, the slot is out of the question: but one stays finite.
  largest = jnp.finfo(inner.products.dtype).max / 2
  slacks = (below - jnp.min(below)) / step / scale / scale
  return solve(inner, jnp.minimum(slacks, largest)).weights


def _mean_under(weights, values):
  """Over the examples, of the sum weighted by `weights`, both `[K, G]`."""
  # Where the weight is 0, the value may be anything.
  return jnp.mean(jnp.sum(jnp.where(weights > 0, weights * values, 0), axis=0))


def _masked(values, valid):
  return values if valid is None else jnp.where(valid, values, -jnp.inf)


def _check_settings(step, per, iterations, tolerance, memory):
  if not isinstance(step, jax.core.Tracer) and not 0 < step < float("inf"):
    raise ValueError(f"step must be a finite number > 0, got {step!r}.")
  if per not in PER:
    raise ValueError(f"per must be one of {', '.join(PER)}, got {per!r}.")
  for name, value, least in (("iterations", iterations, 0), ("memory", memory, 1)):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
      raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
  if not isinstance(tolerance, jax.core.Tracer) and not tolerance >= 0:
    raise ValueError(f"tolerance must be >= 0, got {tolerance!r}.")


def _check_axis(batch_axis, candidates):
  names = (batch_axis,) if isinstance(batch_axis, str) else batch_axis or ()
  checked = getattr(jax.typeof(candidates), "vma", ())
  if not set(names).isdisjoint(checked):
    raise ValueError(
      f"batch_axis {batch_axis!r} must be of a jax.shard_map with check_vma=False."
    )


def _check_valid(valid, per, shape):
  if valid is None:
    return
  if per == "batch":
    raise ValueError('valid must be None with per="batch", got a mask.')
  if valid.shape != shape or valid.dtype != bool:
    raise ValueError(
      f"valid must be bool of shape [K, B] = {shape}, got {valid.dtype} of shape "
      f"{valid.shape}."
    )
  if not isinstance(valid, jax.core.Tracer) and not np.asarray(valid).any(0).all():
    raise ValueError("valid must hold a candidate for each example.")
