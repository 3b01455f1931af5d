"""Augmentation as a jitted function on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Shaped


def pad_crop_flip(
  key: jax.Array, images: Shaped[Array, "B H W C"], *, pad: int, flip: bool
) -> Shaped[Array, "B H W C"]:
  """Pads with zeros, crops at random to the old size, and mirrors every second image.

  Args:
    key: consumed.
    images: `[B, H, W, C]`.
    pad: pixels on each side, >= 0; 0 leaves the images where they are.
    flip: whether to mirror left and right with probability one half.

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
  """Puts back what `pad_crop_flip` made with the same key.

  Args:
    key: the one of `pad_crop_flip`.
    images: its result, `[B, H, W, C]`, or something else in its place.
    onto: `[B, H, W, C]`, shows where the crop did not reach.
    pad: as there.
    flip: as there.

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
  """Corners of the crops `[B, 2]`, who is mirrored `[B, 1, 1, 1]`."""
  crop_key, flip_key = jax.random.split(key)
  offsets = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
  return offsets, jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))


def _padded(images: jax.Array, pad: int) -> jax.Array:
  return jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
