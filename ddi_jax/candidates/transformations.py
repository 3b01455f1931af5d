"""Rotated and shifted images (Engstrom et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from ddi_jax import losses
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.candidates.source import LossOfLogits, Source
from ddi_jax.checks import check_array, check_key, check_number, check_positive_int

_MOST_TRIES = 10**6  # The keys of all tries are in memory at once, 24 bytes each.


def spatial(
  count: int,
  *,
  max_degrees: float = 30.0,
  max_shift: float = 0.1,
  tries: int = 1,
  loss: LossOfLogits = losses.cross_entropy,
) -> Source:
  """Random rotations and translations, the worst of a few for each image.

  Interpolation is bilinear, with zeros around the image.  Choosing the worst of k
  transformations needs no gradients (Engstrom et al., 2019, section 3.1).

  Args:
    count: K >= 1, the number of candidates.
    max_degrees: greatest rotation in either direction, in [0, 180].
    max_shift: greatest shift along either side, as a fraction of it, in [0, 1].
    tries: transformations drawn for each candidate, in [1, 10**6].
    loss: (logits, labels) -> losses `[B]`, by which the worst is chosen.

  Returns:
    A `Source` of K candidates, for inputs `[B, H, W, C]`.

  Raises:
    ValueError: for an argument outside its range; when it runs, for inputs that are
      not images.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ddi_jax import candidates
    >>> source = candidates.spatial(2, max_degrees=10.0)
    >>> inputs, labels = jnp.ones((4, 8, 8, 1)), jnp.zeros(4, int)
    >>> source(jax.random.key(0), lambda x: x.sum((1, 2)), inputs, labels).shape
    (2, 4, 8, 8, 1)
  """
  check_positive_int("count", count)
  check_positive_int("tries", tries)
  if tries > _MOST_TRIES:
    raise ValueError(f"tries must be an integer in [1, {_MOST_TRIES}], got {tries!r}.")
  check_number("max_degrees", max_degrees, "[0, 180]")
  check_number("max_shift", max_shift, "[0, 1]")

  def source(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    check_key(key)
    check_array("inputs", inputs)
    if inputs.ndim != 4:
      raise ValueError(f"spatial needs inputs [B, H, W, C], got {inputs.shape}.")

    def draw(key: jax.Array) -> jax.Array:
      angle_key, shift_key = jax.random.split(key)
      limit = jnp.deg2rad(max_degrees)
      angles = jax.random.uniform(angle_key, inputs.shape[:1], minval=-1) * limit
      sides = jnp.asarray(inputs.shape[1:3]) * max_shift
      draws = jax.random.uniform(shift_key, (len(inputs), 2), minval=-1)
      return jax.vmap(transform)(inputs, angles, draws * sides[None])

    def better(kept: Any, key: jax.Array) -> Any:
      points, highest = kept
      drawn = draw(key)
      drawn_losses = loss(logits_fn(drawn), labels)
      is_better = (drawn_losses > highest) & jnp.isfinite(drawn_losses)
      points = jnp.where(is_better[:, None, None, None], drawn, points)
      return (points, jnp.where(is_better, drawn_losses, highest)), None

    def candidate(key: jax.Array) -> jax.Array:
      if tries == 1:
        return draw(key)
      losses = jax.eval_shape(lambda x: loss(logits_fn(x), labels), inputs)
      start = (inputs, jnp.full(losses.shape, -jnp.inf, losses.dtype))
      return jax.lax.scan(better, start, jax.random.split(key, tries))[0][0]

    return jax.lax.map(candidate, jax.random.split(key, count))

  return source


def transform(image: jax.Array, angle: jax.Array, shift: jax.Array) -> jax.Array:
  """Rotate an image about its centre, then shift it by rows and columns.

  Args:
    image: `[H, W, C]`.
    angle: the angle of rotation in radians.
    shift: the shift in pixels, `[2]`.
  """
  height, width, _ = image.shape
  center = jnp.array([(height - 1) / 2, (width - 1) / 2])
  rows, columns = jnp.mgrid[:height, :width]
  row, column = rows - center[0] - shift[0], columns - center[1] - shift[1]
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  seen = [
    center[0] + cosine * row + sine * column,
    center[1] - sine * row + cosine * column,
  ]

  def channel(values: jax.Array) -> jax.Array:
    return map_coordinates(values, seen, order=1, mode="constant")

  turned = jax.vmap(channel, in_axes=-1, out_axes=-1)(image)
  return turned.astype(image.dtype)
