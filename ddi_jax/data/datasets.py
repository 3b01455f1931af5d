"""Data sets by name: split into three parts, in memory or streamed."""

from collections.abc import Callable
import functools
from importlib import metadata
import math
from typing import Any, NamedTuple

import numpy as np

from ddi_jax.data import resizing, tfds_source
from ddi_jax.data.examples import Dataset, Examples, StreamedDataset
from ddi_jax.data.host_memory import host_memory


class Splits(NamedTuple):
  """The three parts of a data set, and what a model needs to know about it.

  Attributes:
    train: the examples to train on.
    validation: examples held out of the training set, for choosing checkpoints.
    test: the official test set; for digits, which have none, 360 images drawn once; for
      ImageNet, the official validation set.
    max_value: the images' full scale: `images / max_value` is in [0, 1].
    num_classes: labels are in [0, num_classes).
    mean: mean per channel of the official training images, scaled to [0, 1].
    std: standard deviation per channel of the same images.
  """

  train: Examples
  validation: Examples
  test: Examples
  max_value: int
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Description(NamedTuple):
  """What a model needs to know about a data set, available without reading it.

  Attributes:
    max_value: see `Splits`.
    mean: see `Splits`.
    std: see `Splits`.
    image_shape: (height, width, channels); None if the images differ in size.
    num_classes: see `Splits`.
    test_split: the name of the test set in TFDS.
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
  """Load or open a data set, and hold a validation set out of its training set.

  Args:
    name: "digits" (8x8 grey, 1,797 images, ships with scikit-learn), "mnist", "cifar10"
      or "imagenet2012" (the last three from a prepared TensorFlow Datasets directory).
    data_dir: that directory; by default TFDS' own, `~/tensorflow_datasets`.
    validation_size: number of training images to hold out.
    split_seed: seed for the choice of the held-out images.  It is not the run's seed,
      so that runs with different seeds are compared on the same images.
    limit: maximum number of images to keep of each split (for a quick look).
    resolution: height and width to which images are cropped and resized.  For training
      the crops are random.  Required if the images of the data set differ in size,
      otherwise not allowed.
    streaming: "never" decodes all images now and keeps them.  "always" reads and
      decodes an image whenever it is used.  "auto" streams if the data set is larger
      than half of this machine's memory or cropped at random.  The examples are the
      same in each case.

  Returns:
    `Splits`.

  Raises:
    ValueError: for an unknown name, a validation set as large as the data, or a
      resolution or kind of streaming that the data set does not support.
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
  """Hold out the validation set; read all images unless they are streamed.

  Args:
    train: the official training set.
    test: the official test set.
    description: a description of the data set.
    name: the data set's name, for messages.
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
  assert shape is not None  # The caller has filled it in.
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
    arrays: (training images, training labels, test images, test labels).  Images are
      uint8 `[N, H, W, C]` in [0, 255], with C 1 or 3.  Labels are integers `[N]` >= 0.
    name: the data set's name, for messages.
    validation_size: see `load`.
    split_seed: see `load`.
    limit: see `load`.

  Returns:
    `Splits`.  Mean and standard deviation are computed from the training images.  The
    number of classes is the greatest label plus 1.

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
  """Arrays in memory as an `OpenSplit`."""
  labels = labels.astype(np.int32)
  return tfds_source.OpenSplit(
    len(labels),
    images.shape[1:],
    lambda indices, seeds: (images[indices], labels[indices]),
  )


def class_names(name: str, num_classes: int) -> tuple[str, ...]:
  """The names of a data set's classes, in the order of the labels.

  Example:
    >>> from ddi_jax import data
    >>> data.class_names("cifar10", 10)[:2]
    ('airplane', 'automobile')
  """
  return _CLASS_NAMES.get(name, tuple(map(str, range(num_classes))))


def image_shape(name: str, resolution: int | None) -> tuple[int, int, int]:
  """The (height, width, channels) of a data set's images after resizing.

  For `resolution` see `load`.

  Raises:
    ValueError: if a resolution is given but not allowed, or required but missing.

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
  """The training and test sets of scikit-learn's digits.

  scikit-learn does not split them.  The test set is 360 images drawn with a fixed seed.
  """
  # `sklearn.datasets.load_digits` reads the same file, but to import it takes a second.
  package = metadata.distribution("scikit-learn")
  file = package.locate_file("sklearn/datasets/data/digits.csv.gz")
  # A row holds 64 pixels in 0..16, and the digit.
  rows = np.loadtxt(str(file), np.uint8, delimiter=",")
  images = rows[:, :-1].reshape(-1, 8, 8, 1)
  labels = rows[:, -1].astype(np.int32)
  order = np.random.default_rng(0).permutation(len(images))

  def open_part(part: np.ndarray) -> tfds_source.OpenSplit:
    return tfds_source.OpenSplit(
      len(part),
      images.shape[1:],
      lambda indices, seeds: (images[part[indices]], labels[part[indices]]),
    )

  return open_part(order[_DIGITS_TEST_SIZE:]), open_part(order[:_DIGITS_TEST_SIZE])
