"""Reads prepared TensorFlow Datasets directories without TensorFlow."""

from collections.abc import Callable, Sequence
import contextlib
import importlib.util
import os
from pathlib import Path

import numpy as np

Read = Callable[[Sequence[int] | np.ndarray], tuple[np.ndarray, np.ndarray]]

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"
_CHUNK = 1000


class SourceError(Exception):
  """A data set cannot be read; the message says what to do."""


def open_split(name: str, split: str, data_dir: str | None) -> tuple[int, Read]:
  """Opens one split of a prepared data set.

  Args:
    name: the TFDS name, "mnist" say.
    split: "train" or "test".
    data_dir: a TFDS data directory; by default $TFDS_DATA_DIR or TFDS' own.

  Returns:
    (number of images, read): `read(indices)` decodes those images into memory and
    returns (images uint8 `[N, H, W, C]`, labels int32 `[N]`).

  Raises:
    SourceError: if the data set is not prepared there, a package is missing, or (from
      `read` too) a file is damaged.
  """
  root = Path(
    data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DATA_DIR
  ).expanduser()
  _check_packages(name)
  _check_prepared(name, root)
  import tensorflow_datasets as tfds  # noqa: PLC0415  (an optional extra)

  @contextlib.contextmanager
  def explained():
    try:
      yield
    except Exception as error:
      raise SourceError(
        f"the prepared {name} in {root} could not be read ({error}); if it is damaged, "
        f"delete {root / name} and prepare it again."
      ) from error

  def read(indices):
    images, labels = [], []
    with explained():
      for start in range(0, len(indices), _CHUNK):
        chunk = [int(index) for index in indices[start : start + _CHUNK]]
        records = source.__getitems__(chunk)
        images.append(np.stack([record["image"] for record in records]))
        labels.append(np.array([record["label"] for record in records], np.int32))
    return np.concatenate(images), np.concatenate(labels)

  with explained():
    source = tfds.data_source(
      name, split=split, data_dir=root, download=False, try_gcs=False
    )
    return len(source), read


def _check_packages(name: str) -> None:
  needed = ("tensorflow_datasets", "array_record")
  missing = [package for package in needed if not _installed(package)]
  if missing:
    raise SourceError(
      f"reading {name} needs {' and '.join(missing)}: pip install 'ddi_jax[tfds]'."
    )
  if not (_installed("PIL") or _installed("cv2")):
    raise SourceError(
      f"decoding the images of {name} needs pillow or opencv-python-headless: "
      "pip install pillow."
    )


def _check_prepared(name: str, root: Path) -> None:
  """TFDS itself would start a download and die of a missing import."""
  if any(root.glob(f"{name}/*/dataset_info.json")):
    return
  lacking = [p for p in ("tensorflow", "importlib_resources") if not _installed(p)]
  first = f"pip install {' '.join(lacking)}, then " if lacking else ""
  raise SourceError(
    f"{name} is not prepared in {root}: set data.data_dir (or TFDS_DATA_DIR) to a "
    f'directory that holds it, or, once and with internet, {first}python -c "import '
    f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}', "
    "file_format='array_record').download_and_prepare()\"."
  )


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None
