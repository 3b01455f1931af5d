"""Batches of examples held in memory."""

from collections.abc import Iterator

import grain
import numpy as np

from ddi_jax.data.datasets import Dataset

Batch = dict[str, np.ndarray]


class _Examples:
  """A `Dataset` as grain's random-access source."""

  def __init__(self, dataset: Dataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset.labels)

  def __getitem__(self, index: int) -> Batch:
    return {
      "image": self._dataset.images[index],
      "label": self._dataset.labels[index],
    }


def training_batches(
  dataset: Dataset, batch_size: int, seed: int, *, start: int, stop: int
) -> Iterator[Batch]:
  """Shuffled batches of the steps `start` to `stop - 1`.

  The batch of a step is a pure function of (seed, step), so a resumed run sees the same
  batches.  Every epoch is shuffled anew; its last, partial batch is left out.

  Args:
    dataset: N examples.
    batch_size: B, in [1, N].
    seed: >= 0.
    start: first step, >= 0.
    stop: the step after the last.

  Yields:
    {"image": uint8 `[B, H, W, C]`, "label": int32 `[B]`}.

  Raises:
    ValueError: if the batch is larger than the data.
  """
  if not 1 <= batch_size <= len(dataset.labels):
    raise ValueError(
      f"batch_size must be in [1, {len(dataset.labels)}], the number of training "
      f"images; got {batch_size}."
    )
  batches = (
    grain.MapDataset.source(_Examples(dataset))
    .seed(seed)
    .shuffle()
    .batch(batch_size, drop_remainder=True)
    .repeat()
    .slice(slice(start, stop))
  )
  return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1)))


def evaluation_batches(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
  """All examples once, in order, in batches of one shape.

  Args:
    dataset: N examples.
    batch_size: B >= 1.

  Yields:
    {"image": `[B, H, W, C]`, "label": `[B]`, "valid": bool `[B]`}; the last batch is
    padded with copies of its first example, marked as not valid.
  """
  for start in range(0, len(dataset.labels), batch_size):
    images = dataset.images[start : start + batch_size]
    labels = dataset.labels[start : start + batch_size]
    missing = batch_size - len(labels)
    yield {
      "image": np.concatenate([images, np.repeat(images[:1], missing, axis=0)]),
      "label": np.concatenate([labels, np.repeat(labels[:1], missing)]),
      "valid": np.arange(batch_size) < len(labels),
    }
