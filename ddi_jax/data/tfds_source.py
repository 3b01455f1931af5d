"""Read prepared TensorFlow Datasets directories without TensorFlow."""

from collections.abc import Callable, Sequence
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddi_jax.data.errors import DataError
from ddi_jax.data.examples import Read

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"


class OpenSplit(NamedTuple):
  """A split of a prepared data set, from which nothing has been read yet.

  Attributes:
    size: number of images.
    image_shape: (height, width, channels); None if the images differ in size.
    read: (indices, seeds) -> (images uint8 `[B, H, W, C]`, labels int32 `[B]`), decoded
      into memory.  The seeds are passed to `prepare`.  May be called from many threads.
      Raises `DataError` if a file is damaged.
  """

  size: int
  image_shape: tuple[int, int, int] | None
  read: Read


def open_split(
  name: str,
  split: str,
  data_dir: str | None,
  prepare: Callable[[np.ndarray, int | None], np.ndarray] | None = None,
) -> OpenSplit:
  """Open one split of a prepared data set.

  Args:
    name: the TFDS name, for example "mnist".
    split: the split's name, for example "train".
    data_dir: a TFDS data directory; by default $TFDS_DATA_DIR or TFDS' own.
    prepare: (image, seed or None) -> image, applied to every decoded image.  None: the
      images are not changed.

  Returns:
    `OpenSplit`.

  Raises:
    DataError: if the data set is not prepared there, or a package is missing.
  """
  root = Path(
    data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DATA_DIR
  ).expanduser()
  _check_packages(name)
  _check_prepared(name, root)
  import tensorflow_datasets as tfds  # noqa: PLC0415  (an optional extra)

  try:
    source = tfds.data_source(
      name, split=split, data_dir=root, download=False, try_gcs=False
    )
    shape = source.dataset_info.features["image"].shape
  except Exception as error:
    raise DataError(
      f"the prepared {name} in {root} could not be read ({error}); "
      f"{_advice(root, name)}"
    ) from error

  def read(
    indices: Sequence[int] | np.ndarray,
    seeds: Sequence[int | None] | np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    seeds = [None] * len(indices) if seeds is None else seeds
    numbers = [int(index) for index in indices]
    try:
      records = source.__getitems__(numbers)
      images = [record["image"] for record in records]
      if prepare is not None:
        images = list(map(prepare, images, seeds))
      labels = np.array([record["label"] for record in records], np.int32)
      return np.stack(images), labels
    except Exception as error:
      raise DataError(
        f"{_damaged_file(source, split, numbers)} could not be read ({error}); "
        f"{_advice(root, name)}"
      ) from error

  known = None if None in shape else shape
  return OpenSplit(len(source), known, read)


def _damaged_file(source: Any, split: str, indices: list[int]) -> str:
  """The file that holds the first unreadable record among these indices."""
  info = source.dataset_info.splits[split]
  ends = np.cumsum(info.shard_lengths)
  for index in indices:
    try:
      source[index]
    except Exception:
      return str(info.filepaths[np.searchsorted(ends, index, side="right")])
  return f"a file of {source.dataset_info.name}"


def _advice(root: Path, name: str) -> str:
  return f"if it is damaged, delete {root / name} and prepare it again."


def _check_packages(name: str) -> None:
  needed = ("tensorflow_datasets", "array_record")
  missing = [package for package in needed if not _installed(package)]
  if missing:
    raise DataError(
      f"reading {name} needs {' and '.join(missing)}: pip install 'ddi_jax[training]'."
    )
  if not (_installed("PIL") or _installed("cv2")):
    raise DataError(
      f"decoding the images of {name} needs pillow or opencv-python-headless: "
      "pip install pillow."
    )


def _check_prepared(name: str, root: Path) -> None:
  """Raise DataError unless the data set is prepared.

  TFDS itself would start a download and fail on a missing import.
  """
  if any(root.glob(f"{name}/*/dataset_info.json")):
    return
  lacking = [p for p in ("tensorflow", "importlib_resources") if not _installed(p)]
  first = f"pip install {' '.join(lacking)}, then " if lacking else ""
  raise DataError(
    f"{name} is not prepared in {root}: set data.data_dir (or TFDS_DATA_DIR) to a "
    f'directory that holds it, or, once and with internet, {first}python -c "import '
    f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}', "
    "file_format='array_record').download_and_prepare()\"."
  )


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None
