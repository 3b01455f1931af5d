"""Runs that follow each other on a batch, each on the examples that still need it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.numerics import platform

_AT_A_TIME_ON_A_CPU = 50


def group_size(batch: int) -> int:
  """How many of a batch's examples to attack at a time.

  On a CPU so few that their arrays stay in the cache and that hardly any examples are
  computed in vain; elsewhere all of them, which a GPU computes side by side.
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
  """Repeats `results = run(index, arguments, results)` on the examples that remain.

  Before each run the batch is sorted so that they come first, and `size` are taken at a
  time, so that a run costs what is left and not what was there at first, without
  another compilation.

  Args:
    run: (index of the run, arguments `[b, ...]`, results `[b, ...]`) -> results
      `[b, ...]`, each example by itself.
    runs: how many, >= 1; an integer, which may be traced.
    results: arrays `[B, ...]` to be changed.
    remain: results -> whether an example takes part in the next run, `[B]`.  What does
      not remain is not changed.
    arguments: arrays `[B, ...]`.
    size: examples at a time.  From B on all are, in their order, while one remains.

  Returns:
    The results, `[B, ...]`.
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
    # The last group is filled up with the last example.
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
  """`[B]` -> `[B, 1, ...]` of the rank of `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - 1))


def select(mask: jax.Array, chosen: Any, other: Any) -> Any:
  """Leaves `[B, ...]` of `chosen` where the mask `[B]` holds, else of `other`."""
  return jax.tree.map(lambda a, b: jnp.where(expand(mask, a), a, b), chosen, other)
