"""Reads prepared TensorFlow Datasets directories without TensorFlow."""

import importlib.util
import os
from pathlib import Path

import numpy as np

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"
_CHUNK = 1000


class SourceError(Exception):
  """A data set cannot be read; the message says what to do."""


def read(
  name: str, split: str, data_dir: str | None, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes one split into memory.

  Args:
    name: the TFDS name, "mnist" say.
    split: "train" or "test".
    data_dir: a TFDS data directory; by default $TFDS_DATA_DIR or TFDS' own.
    limit: read only so many images.

  Returns:
    (images uint8 `[N, H, W, C]`, labels int32 `[N]`).

  Raises:
    SourceError: if the data set is not prepared there, or a package is missing.
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
    size = len(source) if limit is None else min(limit, len(source))
    images, labels = [], []
    for start in range(0, size, _CHUNK):
      records = source.__getitems__(range(start, min(start + _CHUNK, size)))
      images.append(np.stack([record["image"] for record in records]))
      labels.append(np.array([record["label"] for record in records], np.int32))
  except Exception as error:
    raise SourceError(
      f"the prepared {name} in {root} could not be read ({error}); if it is damaged, "
      f"delete {root / name} and prepare it again."
    ) from error
  return np.concatenate(images), np.concatenate(labels)


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
