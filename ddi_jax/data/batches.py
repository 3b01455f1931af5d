"""Batches of examples, in memory or streamed, read ahead by grain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ddi_jax.data.examples import Batch, Examples

if TYPE_CHECKING:
  import grain

# grain is imported in the functions that use it, because it imports orbax and is slow
# to import.  An invalid config is then refused without that delay.


def training_batches(
  dataset: Examples,
  batch_size: int,
  seed: int,
  *,
  start: int,
  stop: int,
  shard: int = 0,
  num_shards: int = 1,
) -> Iterator[Batch]:
  """Shuffled batches for the steps `start` to `stop - 1`.

  A step's batch, including its random crops, depends only on the seed and the step.  A
  resumed run therefore sees the same batches, as does a run on any number of hosts.
  Every epoch is shuffled anew.  The last batch of an epoch is dropped if it is partial.

  Args:
    dataset: N examples.
    batch_size: B, in [1, N], the size over all shards.
    seed: an integer >= 0.
    start: first step, >= 0.
    stop: the step after the last.
    shard: which part of every batch to read, in [0, num_shards).  The parts in order
      make up the batch.
    num_shards: S, a divisor of B.

  Yields:
    {"image": uint8 `[B / S, H, W, C]`, "label": int32 `[B / S]`, "index": int
    `[B / S]`}, where "index" holds the examples' indices in the data set.

  Raises:
    ValueError: if the batch is larger than the data, or cannot be divided into so many
      shards.
    DataError: while iterating, if a streamed file is damaged.

  Example:
    >>> import numpy as np
    >>> from ddi_jax import data
    >>> dataset = data.Dataset(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10))
    >>> batches = data.training_batches(dataset, 4, seed=0, start=0, stop=2)
    >>> [batch["image"].shape for batch in batches]
    [(4, 8, 8, 1), (4, 8, 8, 1)]
  """
  if not 1 <= batch_size <= len(dataset):
    raise ValueError(
      f"batch_size must be in [1, {len(dataset)}], the number of training "
      f"images; got {batch_size}."
    )
  import grain  # noqa: PLC0415

  part = _part(batch_size, shard, num_shards)

  def draw(
    indices: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    return indices[part], rng.integers(2**63, size=batch_size)[part]

  batches = (
    grain.MapDataset.range(len(dataset))
    .seed(seed)
    .shuffle()
    .batch(batch_size, drop_remainder=True)
    .random_map(draw)
    .map(lambda drawn: dataset.read(*drawn) | {"index": drawn[0]})
    .repeat()
    .slice(slice(start, stop))
  )
  return iter(batches.to_iter_dataset(_read_options(dataset)))


def evaluation_batches(
  dataset: Examples, batch_size: int, *, shard: int = 0, num_shards: int = 1
) -> Iterator[Batch]:
  """All examples once, in order, in batches of one shape.

  Args:
    dataset: N examples.
    batch_size: B >= 1, the size over all shards.
    shard: which part of every batch to read, see `training_batches`.
    num_shards: S, a divisor of B.

  Yields:
    {"image": `[B / S, H, W, C]`, "label": `[B / S]`, "valid": bool `[B / S]`}.  The
    last batch is padded with copies of its first example, marked as not valid.

  Raises:
    ValueError: if a batch cannot be divided into so many shards.
    DataError: while iterating, if a streamed file is damaged.

  Example:
    >>> import numpy as np
    >>> from ddi_jax import data
    >>> dataset = data.Dataset(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10))
    >>> [int(batch["valid"].sum()) for batch in data.evaluation_batches(dataset, 4)]
    [4, 4, 2]
  """
  import grain  # noqa: PLC0415

  part = _part(batch_size, shard, num_shards)

  def read(number: int) -> Batch:
    indices = number * batch_size + np.arange(batch_size)[part]
    valid = indices < len(dataset)
    padded = np.where(valid, indices, number * batch_size)
    return dataset.read(padded) | {"valid": valid}

  batches = grain.MapDataset.range(-(-len(dataset) // batch_size)).map(read)
  return iter(batches.to_iter_dataset(_read_options(dataset)))


def _read_options(dataset: Examples) -> grain.ReadOptions:
  """Read a few batches ahead: grain's default of 500 could take many gigabytes."""
  import grain  # noqa: PLC0415

  threads = dataset.num_threads
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def _part(batch_size: int, shard: int, num_shards: int) -> slice:
  if batch_size % num_shards or not 0 <= shard < num_shards:
    raise ValueError(
      f"num_shards must divide batch_size ({batch_size}) and shard be in "
      f"[0, num_shards); got num_shards {num_shards}, shard {shard}."
    )
  size = batch_size // num_shards
  return slice(shard * size, (shard + 1) * size)
