"""Data sets by name, decoded once into memory and split."""

from typing import NamedTuple

import numpy as np

from ddi_jax.data import tfds_source


class DataError(Exception):
  """A data set cannot be had here; the message says what to do."""


class Dataset(NamedTuple):
  """Examples in memory.

  Attributes:
    images: uint8 `[N, H, W, C]`, in [0, max_value] of the data set.
    labels: int32 `[N]`.
  """

  images: np.ndarray
  labels: np.ndarray


class Splits(NamedTuple):
  """A data set's three parts and what a model needs to know of it.

  Attributes:
    train: to learn from.
    validation: held out of the official training set, to choose checkpoints by.
    test: the official test set.
    max_value: the images' full scale: `images / max_value` is in [0, 1].
    num_classes: labels are in [0, num_classes).
    mean: per channel, of the official training images in [0, 1].
    std: per channel.
  """

  train: Dataset
  validation: Dataset
  test: Dataset
  max_value: int
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Description(NamedTuple):
  """What a model needs to know of a data set, known without reading it.

  Attributes:
    max_value: see `Splits`.
    mean: see `Splits`.
    std: see `Splits`.
    image_shape: (height, width, channels).
    num_classes: see `Splits`.
  """

  max_value: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_shape: tuple[int, int, int]
  num_classes: int = 10


DATASETS = {
  "digits": Description(16, (0.305,), (0.376,), (8, 8, 1)),
  "mnist": Description(255, (0.1307,), (0.3081,), (28, 28, 1)),
  "cifar10": Description(
    255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (32, 32, 3)
  ),
}
_CLASS_NAMES = {
  "cifar10": (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
  ),
}
_DIGITS_TEST_SIZE = 360


def load(
  name: str,
  *,
  data_dir: str | None = None,
  validation_size: int,
  split_seed: int = 0,
  limit: int | None = None,
) -> Splits:
  """Loads a data set and holds a validation set out of its training set.

  Args:
    name: "digits" (8x8 grey, 1,797 images, ships with scikit-learn), "mnist" or
      "cifar10" (from a prepared TensorFlow Datasets directory).
    data_dir: that directory; by default TFDS' own, `~/tensorflow_datasets`.
    validation_size: number of images held out.
    split_seed: of the choice of those images; not a run's seed, so that runs with
      different seeds are compared on the same images.
    limit: keep only so many images of each split (for a quick look).

  Returns:
    `Splits`.

  Raises:
    ValueError: for an unknown name, or a validation set as large as the data.
    DataError: if the data set is not prepared, or a package to read it is missing.
  """
  if name not in DATASETS:
    raise ValueError(f"data.name must be one of {', '.join(DATASETS)}; got {name!r}.")
  try:
    if name == "digits":
      (total, read_train), (test_size, read_test) = _open_digits()
    else:
      total, read_train = tfds_source.open_split(name, "train", data_dir)
      test_size, read_test = tfds_source.open_split(name, "test", data_dir)
    if not 0 < validation_size < total:
      raise ValueError(
        f"data.validation_size must be in [1, {total - 1}] for {name}, "
        f"got {validation_size}."
      )
    order = np.random.default_rng(split_seed).permutation(total)
    description = DATASETS[name]
    return Splits(
      train=Dataset(*read_train(order[validation_size:][:limit])),
      validation=Dataset(*read_train(order[:validation_size][:limit])),
      test=Dataset(*read_test(np.arange(test_size)[:limit])),
      max_value=description.max_value,
      num_classes=description.num_classes,
      mean=description.mean,
      std=description.std,
    )
  except tfds_source.SourceError as error:
    raise DataError(str(error)) from error


def class_names(name: str) -> tuple[str, ...]:
  """What the labels of a data set stand for, by number."""
  return _CLASS_NAMES.get(name, tuple(map(str, range(DATASETS[name].num_classes))))


def _open_digits():
  """scikit-learn's digits, which come as one set: 360 of them, drawn once, for test."""
  import sklearn.datasets  # noqa: PLC0415  (two seconds, for those who use it)

  digits = sklearn.datasets.load_digits()
  images = digits.images.astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(images))

  def open_part(part):
    return len(part), lambda indices: (images[part[indices]], labels[part[indices]])

  return open_part(order[_DIGITS_TEST_SIZE:]), open_part(order[:_DIGITS_TEST_SIZE])
