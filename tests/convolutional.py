"""Small classifiers without convolutions, with jax's, and with those of the models."""

import jax
import jax.numpy as jnp

import ddi_jax
from ddi_jax.models import conv_general_dilated

NETWORKS = ("dense", "lax", "canonical")
PARAMS = {
  "kernel": 0.3 * jax.random.normal(jax.random.key(1), (3, 3, 1, 4)),
  "dense": 0.3 * jax.random.normal(jax.random.key(2), (4, 3)),
}
INPUTS = jax.random.uniform(jax.random.key(3), (5, 6, 6, 1))
LABELS = jnp.arange(5) % 3
ATTACK = ddi_jax.pgd(ddi_jax.linf(0.2), steps=2, step_size=0.1)
KEY = jax.random.key(0)


def dense_layer(inputs, kernel, strides, padding, dimension_numbers):
  """The middle of the kernel at every pixel."""
  del strides, padding, dimension_numbers
  return inputs @ kernel[1, 1]


LAYERS = {
  "dense": dense_layer,
  "lax": jax.lax.conv_general_dilated,
  "canonical": conv_general_dilated,
}


def loss_fn(params, inputs, labels, network="lax"):
  """Cross entropy, `[B]`."""
  kernel = params["kernel"].astype(inputs.dtype)
  x = LAYERS[network](
    inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  logits = jnp.tanh(x).mean((1, 2)) @ params["dense"].astype(x.dtype)
  return ddi_jax.losses.cross_entropy(logits, labels)
