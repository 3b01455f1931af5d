"""Image data sets, in memory or streamed, and the batches drawn from them."""

from ddi_jax.checks import check_installed, missing_extra

try:
  from ddi_jax.data.augmentation import pad_crop_flip, undo_pad_crop_flip
  from ddi_jax.data.batches import evaluation_batches, training_batches
  from ddi_jax.data.datasets import (
    DATASETS,
    STREAMING,
    Splits,
    class_names,
    image_shape,
    load,
    split_arrays,
  )
  from ddi_jax.data.errors import DataError
  from ddi_jax.data.examples import Dataset, Examples, StreamedDataset

  check_installed("grain", "sklearn")
except ModuleNotFoundError as error:
  raise missing_extra("training", error) from error

__all__ = [
  "DATASETS",
  "STREAMING",
  "DataError",
  "Dataset",
  "Examples",
  "Splits",
  "StreamedDataset",
  "class_names",
  "evaluation_batches",
  "image_shape",
  "load",
  "pad_crop_flip",
  "split_arrays",
  "training_batches",
  "undo_pad_crop_flip",
]
