"""Image data sets in memory, and the batches drawn from them."""

from ddi_jax.data.augmentation import pad_crop_flip
from ddi_jax.data.batches import evaluation_batches, training_batches
from ddi_jax.data.datasets import (
  DATASETS,
  DataError,
  Dataset,
  Splits,
  class_names,
  load,
)

__all__ = [
  "DATASETS",
  "DataError",
  "Dataset",
  "Splits",
  "class_names",
  "evaluation_batches",
  "load",
  "pad_crop_flip",
  "training_batches",
]
