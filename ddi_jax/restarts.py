"""Candidates by restarts of an attack, and the parameter gradient at each of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddi_jax import loops
from ddi_jax.attacks import Attack
from ddi_jax.precision import at_least_float32
from ddi_jax.recomputation import RecomputedGradients

LossFn = Callable[..., Any]


class RestartInfo(NamedTuple):
  """What else is known of the K candidates.

  Attributes:
    candidates: the adversarial inputs, `[K, B, ...]`.
    losses: `loss_fn` on each candidate, `[K, B]`.
    aux: the auxiliary output of `loss_fn`, leaves `[K, ...]`; None without `has_aux`.
  """

  candidates: jax.Array
  losses: jax.Array
  aux: Any


def restart_candidates(
  attack: Attack,
  objective: Callable[[jax.Array, Any], jax.Array],
  inputs: jax.Array,
  labels: Any,
  key: jax.Array,
  num_restarts: int,
  *,
  loop: str = "auto",
  at_a_time: int | None = None,
) -> jax.Array:
  """K independent runs of an attack on the whole batch.

  Args:
    attack: see `ddi_jax.attacks`.
    objective: (inputs `[B, ...]`, labels `[B, ...]`) -> losses `[B]`.
    inputs: `[B, ...]`.
    labels: a pytree with leaves `[B, ...]`, handed to the objective.
    key: consumed: split into one key per restart; or these K keys, `[K]`, themselves.
    num_restarts: K >= 1.
    loop: how the K runs are arranged: "unroll", "loop" (`lax.map`), "vmap", or
      "merge", which runs one attack on a batch of K * B.  "merge" keeps an
      accelerator busy but assumes that an example's loss does not depend on the rest
      of its batch (no BatchNorm in training mode), and draws other random numbers.
      "auto" picks one of the first three, see docs/benchmarks.md.
    at_a_time: run at most so many at once (the largest such divisor of K), which
      bounds the memory.  None leaves it to the form: all for "vmap" and "merge"; for
      "loop" 2 side by side on a CPU, which uses its cores better, else 1.  Not with
      "unroll", where XLA decides.

  Returns:
    Candidates `[K, B, ...]`, each a joint perturbation of the batch.

  Raises:
    ValueError: if `num_restarts` < 1, `loop` is unknown, or there are keys, but not K.
  """
  _check_positive("num_restarts", num_restarts)
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap", "merge"))
  if key is None:
    raise ValueError("restarts need a key, got None.")
  check_at_a_time("at_a_time", at_a_time, loop)
  are_keys = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 0
  if are_keys and key.shape != (num_restarts,):
    raise ValueError(
      f"key must be one key or num_restarts = {num_restarts} of them, got shape "
      f"{key.shape}."
    )
  keys = key if are_keys else jax.random.split(key, num_restarts)
  if loop == "merge":
    size = loops.group_size(num_restarts, at_a_time, loop)

    def tile(leaf):
      return jnp.tile(leaf, (size,) + (1,) * (leaf.ndim - 1))

    tiled_labels = jax.tree.map(tile, labels)

    def attack_merged(keys):
      merged = attack(keys[0], lambda x: objective(x, tiled_labels), tile(inputs))
      return merged.reshape(size, *inputs.shape)

    if size == num_restarts:
      return attack_merged(key if are_keys else key[None])
    return loops.map_groups(attack_merged, keys, size)

  def attack_once(restart_key):
    return attack(restart_key, lambda x: objective(x, labels), inputs)

  if num_restarts == 1:
    return attack_once(keys[0])[None]
  form = loops.resolve(loop, attack_once, keys[0])
  if form == "loop" or (form == "unroll" and at_a_time is not None):
    size = loops.group_size(num_restarts, at_a_time, "loop")

    def attack_some(keys):
      repeated = loops.side_by_side(lambda x: objective(x, labels), inputs)
      return jax.vmap(lambda key: attack(key, repeated, inputs))(keys)

    together = attack_some if size > 1 else lambda keys: attack_once(keys[0])[None]
    return loops.map_groups(together, keys, size)
  return loops.map_leading(attack_once, keys, form, at_a_time)


def worst_candidate(candidates: jax.Array, losses: jax.Array) -> jax.Array:
  """For each example the candidate with the largest loss.

  Args:
    candidates: `[K, B, ...]`.
    losses: `[K, B]`.

  Returns:
    Inputs `[B, ...]`: the "max ensemble" of Latorre et al. (2023), section 5; MAX of
    Tramer and Boneh (2019).
  """
  worst = jnp.argmax(losses, axis=0)
  return candidates[worst, jnp.arange(candidates.shape[1])]


def candidate_gradients(
  loss_fn: LossFn,
  params: chex.ArrayTree,
  candidates: jax.Array,
  labels: Any,
  *,
  loop: str = "auto",
  has_aux: bool = False,
  at_a_time: int | None = None,
  gradients_at_a_time: int | None = None,
) -> tuple[chex.ArrayTree | RecomputedGradients, RestartInfo]:
  """The parameter gradient of the batch-mean loss at each of K candidates.

  Parameters of lower precision are cast to float32 first, so that the differences
  between the K gradients survive; a `loss_fn` that wants to compute in bfloat16 casts
  inside.

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`, or (losses, aux).
    params: pytree of floating-point arrays.
    candidates: `[K, B, ...]`, K >= 1.
    labels: handed to `loss_fn`.
    loop: "unroll", "loop" (`lax.map`), "vmap" or "auto", see docs/benchmarks.md.
    has_aux: whether `loss_fn` returns (losses, aux), as in `jax.grad`.
    at_a_time: compute at most so many at once, see `restart_candidates`.
    gradients_at_a_time: None keeps all K gradients.  With a number n they are
      recomputed when needed, in a program loop, and memory does not grow with K; see
      `ddi_jax.RecomputedGradients` for the price.

  Returns:
    (gradients with leaves `[K, *param]` in float32 at least, or `RecomputedGradients`,
    which the directions take in their place; `RestartInfo`).

  Raises:
    ValueError: if the losses do not have shape `[B]`, a parameter is not floating
      point, or `loop` is unknown.
  """
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap"))
  check_at_a_time("at_a_time", at_a_time, loop)
  params = jax.tree_util.tree_map_with_path(check_and_widen, params)

  losses_of = checked_losses(loss_fn, labels, candidates.shape[1], has_aux)

  def mean_loss(params, inputs):
    losses, aux = losses_of(params, inputs)
    return jnp.mean(at_least_float32(losses)), (losses, aux)

  def gradient(inputs):
    return jax.grad(mean_loss, has_aux=True)(params, inputs)

  if gradients_at_a_time is not None:
    _check_positive("gradients_at_a_time", gradients_at_a_time)
    recomputed = RecomputedGradients(gradient, candidates, gradients_at_a_time)
    losses, aux = recomputed.aux
    return recomputed, RestartInfo(candidates, losses, aux)
  gradients, (losses, aux) = loops.map_resolved(gradient, candidates, loop, at_a_time)
  return gradients, RestartInfo(candidates, losses, aux)


def restart_gradients(
  loss_fn: LossFn,
  attack: Attack,
  num_restarts: int,
  *,
  loop: str = "auto",
  attack_loop: str = "auto",
  has_aux: bool = False,
  attack_loss_fn: LossFn | None = None,
  restarts_at_a_time: int | None = None,
  gradients_at_a_time: int | None = None,
) -> Callable[..., tuple[chex.ArrayTree, RestartInfo]]:
  """Attacks the batch from K restarts and takes the parameter gradient at each.

  The input of `danskin_direction`: Latorre et al. (2023), algorithm 1.

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels `[B]`) -> losses `[B]`, or
      (losses, aux) with `has_aux`.
    attack: see `ddi_jax.attacks`.
    num_restarts: K >= 1.
    loop: arrangement of the K gradients, see `candidate_gradients`.
    attack_loop: arrangement of the K attacks, see `restart_candidates`.
    has_aux: whether `loss_fn` returns (losses, aux).  `aux` may hold new model state,
      BatchNorm statistics say; the attack ignores it.
    attack_loss_fn: what the attack increases, if not `loss_fn`: (params, inputs,
      labels) -> losses `[B]`.  Here the model's mode during the attack is chosen.
    restarts_at_a_time: attack, and take gradients, for at most so many restarts at
      once; see `restart_candidates`.
    gradients_at_a_time: see `candidate_gradients`.

  Returns:
    fn(params, inputs, labels, key) -> (gradients of the batch-mean loss, leaves
    `[K, *param]`; `RestartInfo`).  The key is consumed.

  Raises:
    ValueError: if `num_restarts` < 1 or a loop form is unknown.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params["w"] - y) ** 2
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
    >>> gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=4)
    >>> params = {"w": jnp.ones(3)}
    >>> gradients, info = gradients_fn(
    ...     params, jnp.full((2, 3), 0.5), jnp.zeros(2), jax.random.key(0))
    >>> gradients["w"].shape, info.losses.shape
    ((4, 3), (4, 2))
  """
  _check_positive("num_restarts", num_restarts)
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap"))
  loops.check_form(
    "attack_loop", attack_loop, ("auto", "unroll", "loop", "vmap", "merge")
  )
  for form in (loop, attack_loop):
    check_at_a_time("restarts_at_a_time", restarts_at_a_time, form)

  def gradients_fn(params, inputs, labels, key):
    def objective(points, point_labels):
      if attack_loss_fn is not None:
        return attack_loss_fn(params, points, point_labels)
      losses = loss_fn(params, points, point_labels)
      return losses[0] if has_aux else losses

    candidates = restart_candidates(
      attack,
      objective,
      inputs,
      labels,
      key,
      num_restarts,
      loop=attack_loop,
      at_a_time=restarts_at_a_time,
    )
    return candidate_gradients(
      loss_fn,
      params,
      candidates,
      labels,
      loop=loop,
      has_aux=has_aux,
      at_a_time=restarts_at_a_time,
      gradients_at_a_time=gradients_at_a_time,
    )

  return gradients_fn


def checked_losses(
  loss_fn: LossFn, labels: Any, batch: int, has_aux: bool
) -> Callable[[chex.ArrayTree, jax.Array], tuple[jax.Array, Any]]:
  """(params, inputs) -> (losses, aux), where the losses must have shape `[batch]`."""

  def losses_of(params, inputs):
    losses, aux = (
      loss_fn(params, inputs, labels)
      if has_aux
      else (loss_fn(params, inputs, labels), None)
    )
    if losses.shape != (batch,):
      raise ValueError(
        f"loss_fn must return losses of shape {(batch,)}, one per example; got "
        f"{losses.shape}."
      )
    return losses, aux

  return losses_of


def check_and_widen(path, param):
  if not jnp.issubdtype(jnp.result_type(param), jnp.floating):
    raise ValueError(
      f"params{jax.tree_util.keystr(path)} must be floating point, got "
      f"{jnp.result_type(param)}."
    )
  return at_least_float32(jnp.asarray(param))


def check_at_a_time(name, at_a_time, form):
  if at_a_time is None:
    return
  _check_positive(name, at_a_time)
  if form == "unroll":
    raise ValueError(
      f'{name} must be None with loop form "unroll", where XLA decides; got '
      f"{at_a_time!r}."
    )


def _check_positive(name, value):
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
