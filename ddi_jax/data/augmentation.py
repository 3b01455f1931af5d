"""Random crops and mirror images, as functions that can be jitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Shaped


def pad_crop_flip(
  key: jax.Array, images: Shaped[Array, "B H W C"], *, pad: int, flip: bool
) -> Shaped[Array, "B H W C"]:
  """Pad with zeros, crop at random to the old size, and mirror at random.

  Args:
    key: a key; consumed.
    images: `[B, H, W, C]`.
    pad: pixels added on each side, >= 0.  With 0 the images are not moved.
    flip: whether to mirror each image left to right with probability one half.

  Returns:
    `[B, H, W, C]`, of the same dtype.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ddi_jax import data
    >>> images, key = jnp.ones((2, 8, 8, 3)), jax.random.key(0)
    >>> data.pad_crop_flip(key, images, pad=2, flip=True).shape
    (2, 8, 8, 3)
  """
  offsets, mirrored = _draw(key, len(images), pad)
  if pad:

    def crop(padded: jax.Array, offset: jax.Array) -> jax.Array:
      return jax.lax.dynamic_slice(padded, (*offset, 0), images.shape[1:])

    images = jax.vmap(crop)(_padded(images, pad), offsets)
  if flip:
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images


def undo_pad_crop_flip(
  key: jax.Array, images: jax.Array, onto: jax.Array, *, pad: int, flip: bool
) -> jax.Array:
  """Undo `pad_crop_flip` with the same key: mirror and move the images back.

  Args:
    key: the key that was given to `pad_crop_flip`.
    images: the result of `pad_crop_flip`, `[B, H, W, C]`, or other images aligned with
      it.
    onto: `[B, H, W, C]`, supplies the pixels that the crop left out.
    pad: as given to `pad_crop_flip`.
    flip: as given to `pad_crop_flip`.

  Returns:
    `[B, H, W, C]`, of the dtype of `images`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ddi_jax import data
    >>> images, key = jnp.arange(32.0).reshape(2, 4, 4, 1), jax.random.key(0)
    >>> mirrored = data.pad_crop_flip(key, images, pad=0, flip=True)
    >>> back = data.undo_pad_crop_flip(key, mirrored, images, pad=0, flip=True)
    >>> bool(jnp.all(back == images))
    True
  """
  offsets, mirrored = _draw(key, len(images), pad)
  if flip:
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  if pad:

    def put_back(padded: jax.Array, image: jax.Array, offset: jax.Array) -> jax.Array:
      whole = jax.lax.dynamic_update_slice(padded, image, (*offset, 0))
      return whole[pad:-pad, pad:-pad]

    padded = _padded(onto.astype(images.dtype), pad)
    images = jax.vmap(put_back)(padded, images, offsets)
  return images


def _draw(key: jax.Array, batch: int, pad: int) -> tuple[jax.Array, jax.Array]:
  """The corners of the crops `[B, 2]`, and which images to mirror `[B, 1, 1, 1]`."""
  crop_key, flip_key = jax.random.split(key)
  offsets = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
  return offsets, jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))


def _padded(images: jax.Array, pad: int) -> jax.Array:
  return jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
