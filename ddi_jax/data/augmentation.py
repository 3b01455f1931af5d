"""Augmentation as a jitted function on the device."""

import jax
import jax.numpy as jnp


def pad_crop_flip(
  key: jax.Array, images: jax.Array, *, pad: int, flip: bool
) -> jax.Array:
  """Pads with zeros, crops at random to the old size, and mirrors every second image.

  Args:
    key: consumed.
    images: `[B, H, W, C]`.
    pad: pixels on each side, >= 0; 0 leaves the images where they are.
    flip: whether to mirror left and right with probability one half.

  Returns:
    `[B, H, W, C]`, of the same dtype.
  """
  crop_key, flip_key = jax.random.split(key)
  batch, height, width, channels = images.shape
  if pad:
    offsets = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image, offset):
      return jax.lax.dynamic_slice(
        image, (offset[0], offset[1], 0), (height, width, channels)
      )

    images = jax.vmap(crop)(padded, offsets)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images
