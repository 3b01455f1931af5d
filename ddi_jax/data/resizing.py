"""Images of any size to one size, as is usual for ImageNet."""

import math

import numpy as np

_AREA = (0.08, 1.0)  # of the image
_RATIO = (3 / 4, 4 / 3)  # width by height
_ATTEMPTS = 10
_CENTRAL = 224 / 256  # of the short side


def random_resized_crop(image: np.ndarray, resolution: int, seed: int) -> np.ndarray:
  """A random part of an image, resized (the crop of Szegedy et al., 2015).

  Args:
    image: uint8 `[H, W, C]`.
    resolution: R, height and width of the result.
    seed: of the part: its area is 8 to 100 % of the image, its width 3/4 to 4/3 of its
      height; where ten draws do not fit, it is the central square.

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
  """The central square, of 224/256 of the short side, resized.

  Args:
    image: uint8 `[H, W, C]`.
    resolution: R, height and width of the result.
    fraction: of the short side.

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

  # Pillow has no images of one channel as an axis.
  plain = image[..., 0] if image.shape[-1] == 1 else image
  resized = Image.fromarray(plain).resize(
    (resolution, resolution), Image.Resampling.BILINEAR, box=box
  )
  return np.asarray(resized).reshape(resolution, resolution, image.shape[-1])
