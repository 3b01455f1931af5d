"""Labelled images by index: kept in memory, or read when they are used."""

from collections.abc import Callable, Sequence
import dataclasses
import os
from typing import Protocol

import numpy as np

from ddi_jax.tables import summary

Batch = dict[str, np.ndarray]
Read = Callable[
  [Sequence[int] | np.ndarray, Sequence[int] | np.ndarray | None],
  tuple[np.ndarray, np.ndarray],
]


class Examples(Protocol):
  """N images, uint8 in [0, max_value], with their labels."""

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""

  @property
  def num_threads(self) -> int:
    """The number of batches that are worth reading at once."""

  def __len__(self) -> int:
    """N."""

  def read(self, indices: np.ndarray, seeds: np.ndarray | None = None) -> Batch:
    """Read {"image": uint8 `[B, H, W, C]`, "label": int32 `[B]`} at `indices [B]`.

    If the data set is cropped at random, `seeds [B]` are the seeds of the images'
    crops; None gives the deterministic crops used in evaluation.
    """

  def first(self, limit: int | None) -> "Examples":
    """The first `limit` examples, or all if None."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples in memory.

  Attributes:
    images: uint8 `[N, H, W, C]`, in [0, max_value].
    labels: int32 `[N]`.
  """

  images: np.ndarray
  labels: np.ndarray
  num_threads = 1

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.images.shape[1:]

  def __repr__(self) -> str:
    """The arrays' sizes and ranges instead of their values."""
    return f"Dataset(images={summary(self.images)}; labels={summary(self.labels)})"

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray, seeds: np.ndarray | None = None) -> Batch:
    """See `Examples`.  The seeds are not used, because the images are not cropped."""
    return {"image": self.images[indices], "label": self.labels[indices]}

  def first(self, limit: int | None) -> "Dataset":
    """The first `limit` examples, or all if None."""
    return Dataset(self.images[:limit], self.labels[:limit])


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
  """Examples that are read and decoded each time they are used, and not kept.

  Attributes:
    source: reads images and labels by index, see `tfds_source.OpenSplit`.
    indices: int `[N]`, the examples' indices in `source`.
    image_shape: (height, width, channels).
  """

  source: Read
  indices: np.ndarray
  image_shape: tuple[int, int, int]

  @property
  def num_threads(self) -> int:
    """One thread per processor, because decoding is most of the work."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4

  def __len__(self) -> int:
    return len(self.indices)

  def read(self, indices: np.ndarray, seeds: np.ndarray | None = None) -> Batch:
    """See `Examples`; raises `DataError` if a file is damaged."""
    images, labels = self.source(self.indices[indices], seeds)
    return {"image": images, "label": labels}

  def first(self, limit: int | None) -> "StreamedDataset":
    """The first `limit` examples, or all if None."""
    return dataclasses.replace(self, indices=self.indices[:limit])
