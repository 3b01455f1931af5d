"""Successive runs on a batch, each on the examples that still need it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.numerics import platform

_AT_A_TIME_ON_A_CPU = 50


def group_size(batch: int) -> int:
  """The number of examples of a batch to attack at a time.

  On a CPU, groups are so small that their arrays stay in the cache and that few
  examples are computed in vain.  Elsewhere the group is the whole batch, which a GPU
  computes in parallel.
  """
  if platform.target() != "cpu":
    return batch
  return -(-batch // max(1, round(batch / _AT_A_TIME_ON_A_CPU)))


def run_on_remaining(
  run: Callable[[jax.Array, Any, Any], Any],
  runs: Any,
  results: Any,
  remain: Callable[[Any], jax.Array],
  arguments: Any,
  size: int,
) -> Any:
  """Repeat `results = run(index, arguments, results)` on the remaining examples.

  Before each run the batch is sorted so that the remaining examples come first, and
  `size` of them are processed at a time.  A run therefore costs in proportion to the
  number of remaining examples, without another compilation.

  Args:
    run: (index of the run, arguments `[b, ...]`, results `[b, ...]`) -> results `[b,
      ...]`, computed for each example separately.
    runs: number of runs, >= 1; an integer, which may be traced.
    results: arrays `[B, ...]`, the results before the first run.
    remain: results -> whether an example takes part in the next run, `[B]`.  The
      results of the other examples do not change.
    arguments: arrays `[B, ...]`.
    size: number of examples at a time.  If it is at least B, each run gets the whole
      batch in its own order, as long as one example remains.

  Returns:
    The results after the last run, `[B, ...]`.
  """
  batch = len(remain(results))

  def run_or_keep(index: Any, arguments: Any, results: Any) -> Any:
    return select(remain(results), run(index, arguments, results), results)

  def together(index: Any, results: Any) -> Any:
    return run_or_keep(index, arguments, results)

  def by_group(index: Any, results: Any) -> Any:
    left = remain(results)
    count = jnp.sum(left)
    order = jnp.argsort(~left)
    # The last group is padded with the last example.
    padded = jnp.pad(order, (0, -batch % size), mode="edge")
    sorted_arguments, sorted_results = jax.tree.map(
      lambda leaf: leaf[padded], (arguments, results)
    )

    def group(state: Any) -> Any:
      start, results = state
      some = jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size),
        (sorted_arguments, results),
      )
      new = run_or_keep(index, *some)
      return start + size, jax.tree.map(
        lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, start, 0),
        results,
        new,
      )

    start = jnp.zeros_like(count)
    _, sorted_results = jax.lax.while_loop(
      lambda state: state[0] < count, group, (start, sorted_results)
    )
    places = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf[places], sorted_results)

  turn = together if size >= batch else by_group
  _, results = jax.lax.while_loop(
    lambda state: (state[0] < runs) & jnp.any(remain(state[1])),
    lambda state: (state[0] + 1, turn(*state)),
    (jnp.int32(0), results),
  )
  return results


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
  """Reshape `[B]` to `[B, 1, ...]`, with the rank of `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - 1))


def select(mask: jax.Array, chosen: Any, other: Any) -> Any:
  """Leaves `[B, ...]` of `chosen` where the mask `[B]` is True, else of `other`."""
  return jax.tree.map(lambda a, b: jnp.where(expand(mask, a), a, b), chosen, other)
