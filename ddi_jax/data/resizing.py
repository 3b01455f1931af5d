"""Crop and resize images to one size, as is usual for ImageNet."""

import math

import numpy as np

_AREA = (0.08, 1.0)  # Range of the crop's fraction of the image.
_RATIO = (3 / 4, 4 / 3)  # Range of the crop's width / height.
_ATTEMPTS = 10
_CENTRAL = 224 / 256  # The central crop's fraction of the short side.


def random_resized_crop(image: np.ndarray, resolution: int, seed: int) -> np.ndarray:
  """Crop a random part of an image and resize it (Szegedy et al., 2015).

  The part's area is 8 to 100 % of the image and its width 3/4 to 4/3 of its height.  If
  none of ten draws fits into the image, the part is the central square.

  Args:
    image: uint8 `[H, W, C]`.
    resolution: R, height and width of the result.
    seed: seed for the choice of the part.

  Returns:
    uint8 `[R, R, C]`.
  """
  rng = np.random.default_rng(seed)
  height, width, _ = image.shape
  for _ in range(_ATTEMPTS):
    area = rng.uniform(*_AREA) * height * width
    ratio = math.exp(rng.uniform(*np.log(_RATIO)))
    crop_height = round(math.sqrt(area / ratio))
    crop_width = round(math.sqrt(area * ratio))
    if 0 < crop_height <= height and 0 < crop_width <= width:
      top = rng.integers(height - crop_height + 1)
      left = rng.integers(width - crop_width + 1)
      box = (left, top, left + crop_width, top + crop_height)
      return _resize(image, resolution, box)
  return central_crop(image, resolution, fraction=1.0)


def central_crop(
  image: np.ndarray, resolution: int, fraction: float = _CENTRAL
) -> np.ndarray:
  """Crop the central square of an image and resize it.

  Args:
    image: uint8 `[H, W, C]`.
    resolution: R, height and width of the result.
    fraction: side of the square as a fraction of the image's short side, by default
      224/256.

  Returns:
    uint8 `[R, R, C]`.
  """
  height, width, _ = image.shape
  side = fraction * min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  return _resize(image, resolution, (left, top, left + side, top + side))


def _resize(
  image: np.ndarray, resolution: int, box: tuple[float, float, float, float]
) -> np.ndarray:
  from PIL import Image  # noqa: PLC0415  (an optional extra)

  # Pillow does not accept an axis of one channel.
  plain = image[..., 0] if image.shape[-1] == 1 else image
  resized = Image.fromarray(plain).resize(
    (resolution, resolution), Image.Resampling.BILINEAR, box=box
  )
  return np.asarray(resized).reshape(resolution, resolution, image.shape[-1])
