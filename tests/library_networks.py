"""The same network with BatchNorm and Dropout, written for each library.

Each is a factory for the training program, `library_networks:NAME` in a config.
"""

import equinox as eqx
from flax import linen, nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import models

WIDTH = 8


class NnxNetwork(nnx.Module):
  def __init__(self, image_shape, num_classes, *, rngs):
    self.hidden = nnx.Linear(int(np.prod(image_shape)), WIDTH, rngs=rngs)
    self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.logits = nnx.Linear(WIDTH, num_classes, rngs=rngs)

  def __call__(self, inputs):
    x = self.hidden(inputs.reshape(len(inputs), -1))
    return self.logits(self.dropout(nnx.celu(self.norm(x))))


class LinenNetwork(linen.Module):
  num_classes: int

  @linen.compact
  def __call__(self, inputs, train):
    x = linen.Dense(WIDTH)(inputs.reshape(len(inputs), -1))
    x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = linen.Dropout(0.5, deterministic=not train)(linen.celu(x))
    return linen.Dense(self.num_classes)(x)


class EquinoxNetwork(eqx.Module):
  hidden: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout
  logits: eqx.nn.Linear

  def __init__(self, image_shape, num_classes, *, key):
    first, second = jax.random.split(key)
    self.hidden = eqx.nn.Linear(int(np.prod(image_shape)), WIDTH, key=first)
    self.norm = eqx.nn.BatchNorm(WIDTH, "batch", momentum=0.9, mode="batch")
    self.dropout = eqx.nn.Dropout(0.5)
    self.logits = eqx.nn.Linear(WIDTH, num_classes, key=second)

  def __call__(self, inputs, state, *, key=None):
    x, state = self.norm(self.hidden(inputs.ravel()), state)
    return self.logits(self.dropout(jax.nn.celu(x), key=key)), state


def haiku_network(num_classes):
  def forward(inputs, is_training):
    x = hk.Linear(WIDTH)(inputs.reshape(len(inputs), -1))
    x = jax.nn.celu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    if is_training:
      x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(num_classes)(x)

  return hk.transform_with_state(forward)


def of_linen(image_shape, num_classes, *, rngs):
  images = jnp.zeros((1, *image_shape))
  return models.functional(LinenNetwork(num_classes), images, key=rngs.params())


def of_haiku(image_shape, num_classes, *, rngs):
  images = jnp.zeros((1, *image_shape))
  return models.functional(haiku_network(num_classes), images, key=rngs.params())


def of_equinox(image_shape, num_classes, *, rngs):
  network, state = eqx.nn.make_with_state(EquinoxNetwork)(
    image_shape, num_classes, key=rngs.params()
  )
  return models.functional(network, state=state)


FACTORIES = {
  "nnx": NnxNetwork,
  "linen": of_linen,
  "haiku": of_haiku,
  "equinox": of_equinox,
}


def functional(library, image_shape, num_classes):
  """(apply, params, model state), with initial parameters of seed 0."""
  made = FACTORIES[library](image_shape, num_classes, rngs=nnx.Rngs(0))
  return models.functional(made) if library == "nnx" else made


def two_classes(image_shape, num_classes, *, rngs):
  """A mistake: the number of classes is not the data's."""
  del num_classes
  return NnxNetwork(image_shape, 2, rngs=rngs)
