"""Data sets by name, split, in memory or streamed."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ddi_jax.data import resizing, tfds_source
from ddi_jax.data.examples import Dataset, Examples, StreamedDataset
from ddi_jax.data.host_memory import host_memory


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

  train: Examples
  validation: Examples
  test: Examples
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
    image_shape: (height, width, channels); None where images differ in size.
    num_classes: see `Splits`.
    test_split: TFDS' name of the test set.
  """

  max_value: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_shape: tuple[int, int, int] | None
  num_classes: int = 10
  test_split: str = "test"


DATASETS = {
  "digits": Description(16, (0.305,), (0.376,), (8, 8, 1)),
  "mnist": Description(255, (0.1307,), (0.3081,), (28, 28, 1)),
  "cifar10": Description(
    255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (32, 32, 3)
  ),
  "imagenet2012": Description(
    255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None, 1000, "validation"
  ),
}
STREAMING = ("auto", "always", "never")
_CLASS_NAMES = {
  "cifar10": (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
  ),
}
_DIGITS_TEST_SIZE = 360
_CHUNK = 1000


def load(
  name: str,
  *,
  data_dir: str | None = None,
  validation_size: int,
  split_seed: int = 0,
  limit: int | None = None,
  resolution: int | None = None,
  streaming: str = "auto",
) -> Splits:
  """Loads or opens a data set and holds a validation set out of its training set.

  Args:
    name: "digits" (8x8 grey, 1,797 images, ships with scikit-learn), "mnist", "cifar10"
      or "imagenet2012" (from a prepared TensorFlow Datasets directory).
    data_dir: that directory; by default TFDS' own, `~/tensorflow_datasets`.
    validation_size: number of images held out.
    split_seed: of the choice of those images; not a run's seed, so that runs with
      different seeds are compared on the same images.
    limit: keep only so many images of each split (for a quick look).
    resolution: height and width to which images are cropped and resized, at random for
      training; for data sets whose images differ in size, and only for them.
    streaming: "never": decode all images now and keep them; "always": read and decode
      an image whenever it is asked for; "auto": whichever suits, streaming what is
      larger than half of this machine's memory or cropped at random.  The examples
      are the same.

  Returns:
    `Splits`.

  Raises:
    ValueError: for an unknown name, a validation set as large as the data, or a
      resolution or way of streaming that the data set has not.
    DataError: if the data set is not prepared, or a package to read it is missing.

  Example:
    >>> from ddi_jax import data
    >>> splits = data.load("digits", validation_size=200)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1237, 200, 360)
  """
  if name not in DATASETS:
    raise ValueError(f"data.name must be one of {', '.join(DATASETS)}; got {name!r}.")
  description = DATASETS[name]
  if name == "digits":
    train, test = _open_digits()
  else:
    prepare = functools.partial(_resized, resolution) if resolution else None
    train, test = (
      tfds_source.open_split(name, split, data_dir, prepare)
      for split in ("train", description.test_split)
    )

  def streams(num_images: int) -> bool:
    num_bytes = num_images * math.prod(image_shape(name, resolution))
    return _streams(name, num_bytes, streaming, resolution)

  return _split(
    train,
    test,
    description._replace(image_shape=image_shape(name, resolution)),
    name=name,
    validation_size=validation_size,
    split_seed=split_seed,
    limit=limit,
    streams=streams,
  )


def _split(
  train: tfds_source.OpenSplit,
  test: tfds_source.OpenSplit,
  description: Description,
  *,
  name: str,
  validation_size: int,
  split_seed: int,
  limit: int | None,
  streams: Callable[[int], bool],
) -> Splits:
  """Holds out the validation set; reads all images unless they are streamed.

  Args:
    train: the official training set.
    test: the official test set.
    description: of the data set.
    name: of the data set, for messages.
    validation_size: see `load`.
    split_seed: see `load`.
    limit: see `load`.
    streams: number of images -> whether to stream them.
  """
  if not 0 < validation_size < train.size:
    raise ValueError(
      f"data.validation_size must be in [1, {train.size - 1}] for {name}, "
      f"got {validation_size}."
    )
  order = np.random.default_rng(split_seed).permutation(train.size)
  train_indices = order[validation_size:][:limit]
  validation_indices = order[:validation_size][:limit]
  test_indices = np.arange(test.size)[:limit]
  shape = description.image_shape
  assert shape is not None  # The caller knows it by now.
  num_images = len(train_indices) + len(validation_indices) + len(test_indices)
  is_streamed = streams(num_images)

  def make(split: tfds_source.OpenSplit, indices: np.ndarray) -> Examples:
    if is_streamed:
      return StreamedDataset(split.read, indices, shape)
    chunks = [
      split.read(indices[start : start + _CHUNK], None)
      for start in range(0, len(indices), _CHUNK)
    ]
    return Dataset(*(np.concatenate(column) for column in zip(*chunks, strict=True)))

  return Splits(
    train=make(train, train_indices),
    validation=make(train, validation_indices),
    test=make(test, test_indices),
    max_value=description.max_value,
    num_classes=description.num_classes,
    mean=description.mean,
    std=description.std,
  )


def split_arrays(
  arrays: Any,
  *,
  name: str,
  validation_size: int,
  split_seed: int = 0,
  limit: int | None = None,
) -> Splits:
  """Split a data set of your own, given as arrays.

  Args:
    arrays: (training images, training labels, test images, test labels); images are
      uint8 `[N, H, W, C]` with C of 1 or 3, in [0, 255], labels integers `[N]` >= 0.
    name: of the data set, for messages.
    validation_size: see `load`.
    split_seed: see `load`.
    limit: see `load`.

  Returns:
    `Splits`; mean and deviation are those of the training images, the number of classes
    is that of the greatest label, plus 1.

  Raises:
    ValueError: for arrays of another form, or a validation set as large as the data.

  Example:
    >>> import numpy as np
    >>> from ddi_jax import data
    >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
    >>> splits = data.split_arrays(
    ...     (images, labels, images, labels), name="mine", validation_size=2)
    >>> len(splits.train), splits.num_classes
    (8, 10)
  """
  if not isinstance(arrays, tuple) or len(arrays) != 4:
    raise ValueError(
      f"data.name {name!r} must return (training images, training labels, test images, "
      f"test labels), got {type(arrays).__name__}."
    )
  arrays = tuple(map(np.asarray, arrays))
  for images, labels in (arrays[:2], arrays[2:]):
    _check_arrays(name, images, labels)
  if arrays[0].shape[1:] != arrays[2].shape[1:]:
    raise ValueError(
      f"data.name {name!r} must return training and test images of one shape, got "
      f"{arrays[0].shape[1:]} and {arrays[2].shape[1:]}."
    )
  train, test = (_kept(images, labels) for images, labels in (arrays[:2], arrays[2:]))
  scaled = arrays[0].reshape(-1, arrays[0].shape[-1]) / 255
  return _split(
    train,
    test,
    Description(
      max_value=255,
      mean=tuple(map(float, scaled.mean(axis=0))),
      std=tuple(map(float, np.maximum(scaled.std(axis=0), 1e-6))),
      image_shape=arrays[0].shape[1:],
      num_classes=int(max(arrays[1].max(), arrays[3].max())) + 1,
    ),
    name=name,
    validation_size=validation_size,
    split_seed=split_seed,
    limit=limit,
    streams=lambda num_images: False,
  )


def _check_arrays(name: str, images: np.ndarray, labels: np.ndarray) -> None:
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1] not in (1, 3)
    or not images.size
  ):
    raise ValueError(
      f"data.name {name!r} must return images uint8 [N, H, W, C] with N >= 1 and C of "
      f"1 or 3, got {images.dtype} {images.shape}."
    )
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"data.name {name!r} must return labels, integers [{len(images)}], got "
      f"{labels.dtype} {labels.shape}."
    )
  if np.min(labels) < 0:
    raise ValueError(f"data.name {name!r} must return labels >= 0, got {min(labels)}.")


def _kept(images: np.ndarray, labels: np.ndarray) -> tfds_source.OpenSplit:
  """Arrays as a split that has been opened."""
  labels = labels.astype(np.int32)
  return tfds_source.OpenSplit(
    len(labels),
    images.shape[1:],
    lambda indices, seeds: (images[indices], labels[indices]),
  )


def class_names(name: str, num_classes: int) -> tuple[str, ...]:
  """What the labels of a data set stand for, by number.

  Example:
    >>> from ddi_jax import data
    >>> data.class_names("cifar10", 10)[:2]
    ('airplane', 'automobile')
  """
  return _CLASS_NAMES.get(name, tuple(map(str, range(num_classes))))


def image_shape(name: str, resolution: int | None) -> tuple[int, int, int]:
  """(height, width, channels) of a data set's images, `resolution` as for `load`.

  Raises:
    ValueError: for a resolution where none is wanted, or none where one is.

  Example:
    >>> from ddi_jax import data
    >>> data.image_shape("mnist", None)
    (28, 28, 1)
  """
  shape = DATASETS[name].image_shape
  if shape is not None:
    if resolution is not None:
      raise ValueError(
        f"data.resolution must be None for {name}, whose images are all of shape "
        f"{shape}; got {resolution}."
      )
    return shape
  if resolution is None:
    raise ValueError(
      f"data.resolution must be an integer >= 1 for {name}, whose images differ in "
      "size; got None."
    )
  return (resolution, resolution, len(DATASETS[name].mean))


def _streams(name: str, num_bytes: int, streaming: str, resolution: int | None) -> bool:
  if streaming not in STREAMING:
    raise ValueError(
      f"data.streaming must be one of {', '.join(STREAMING)}; got {streaming!r}."
    )
  if name == "digits":
    if streaming == "always":
      raise ValueError("data.streaming must be auto or never for digits.")
    return False
  if streaming == "never":
    if resolution:
      raise ValueError(
        f"data.streaming must be auto or always for {name}, which is cropped anew each "
        "time; got 'never'."
      )
    if num_bytes > host_memory():
      raise ValueError(
        f"data.streaming must be auto or always for {name}, whose "
        f"{num_bytes / 2**30:.1f} GiB do not fit into the memory of this machine, "
        f"{host_memory() / 2**30:.1f} GiB; got 'never'."
      )
  return streaming == "always" or bool(resolution) or num_bytes > host_memory() / 2


def _resized(resolution: int, image: np.ndarray, seed: int | None) -> np.ndarray:
  if seed is None:
    return resizing.central_crop(image, resolution)
  return resizing.random_resized_crop(image, resolution, seed)


def _open_digits() -> tuple[tfds_source.OpenSplit, tfds_source.OpenSplit]:
  """scikit-learn's digits, which come as one set: 360 of them, drawn once, for test."""
  import sklearn.datasets  # noqa: PLC0415  (two seconds, for those who use it)

  digits = sklearn.datasets.load_digits()
  images = digits.images.astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(images))

  def open_part(part: np.ndarray) -> tfds_source.OpenSplit:
    return tfds_source.OpenSplit(
      len(part),
      images.shape[1:],
      lambda indices, seeds: (images[part[indices]], labels[part[indices]]),
    )

  return open_part(order[_DIGITS_TEST_SIZE:]), open_part(order[:_DIGITS_TEST_SIZE])
