"""A small CELU network for scikit-learn's digits, trained in part, for single steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ddi_jax
from ddi_jax import data, losses, models, sources
from ddi_jax.sources import Source
from ddi_jax.threat_models import ThreatModel

Params = chex.ArrayTree


class DigitsNetwork(NamedTuple):
  """A network on its way.

  Attributes:
    logits: (params, inputs `[B, H, W, C]`) -> logits `[B, 10]`.
    loss: (params, inputs, labels) -> losses `[B]`.
    params: at first.
    batch: () -> the next random (inputs, labels).
  """

  logits: Callable[[Params, jax.Array], jax.Array]
  loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
  params: Params
  batch: Callable[[], tuple[jax.Array, jax.Array]]


def create(batch_size: int) -> DigitsNetwork:
  """The untrained network."""
  splits = data.load("digits", validation_size=200, split_seed=0)
  images = jnp.asarray(splits.train.images, jnp.float32) / splits.max_value
  labels = jnp.asarray(splits.train.labels)
  model = models.create_model(
    "small",
    image_shape=images.shape[1:],
    num_classes=10,
    mean=(0.3,),
    std=(0.4,),
    settings={"width": 8, "activation": "celu", "normalization": "none"},
    seed=0,
  )
  apply, params, model_state = models.functional(model)
  generator = np.random.default_rng(0)

  def logits(params, inputs):
    return apply(params, model_state, inputs, train=False)[0]

  def batch():
    chosen = generator.choice(len(images), batch_size, replace=False)
    return images[chosen], labels[chosen]

  def loss(params, inputs, labels):
    return losses.cross_entropy(logits(params, inputs), labels)

  return DigitsNetwork(logits, loss, params, batch)


def train_on_worst(
  network: DigitsNetwork, source: Source, steps: int, learning_rate: float = 1e-3
) -> DigitsNetwork:
  """Adam on each example's worst candidate (MAX, Tramer and Boneh, 2019)."""
  optimizer = optax.adam(learning_rate)

  @jax.jit
  def step(params, state, key, inputs, labels):
    points = source(key, lambda x: network.logits(params, x), inputs, labels)
    found = jax.lax.map(lambda x: network.loss(params, x, labels), points)
    worst = ddi_jax.worst_candidate(points, found)
    gradient = jax.grad(lambda p: network.loss(p, worst, labels).mean())(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  params, state = network.params, optimizer.init(network.params)
  for index in range(steps):
    key = jax.random.fold_in(jax.random.key(1), index)
    params, state = step(params, state, key, *network.batch())
  return network._replace(params=params)


def restarts_in(
  threat_models: Sequence[ThreatModel], *, steps: int, count: int
) -> Source:
  """PGD restarts in each of some threat models, steps of 2.5 epsilon / steps."""
  return sources.combine(
    *(
      sources.restarts(
        ddi_jax.pgd(model, steps=steps, step_size=2.5 * model.epsilon / steps), count
      )
      for model in threat_models
    )
  )


def robust_loss(
  network: DigitsNetwork, judge: Source
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]:
  """Jitted (params, key, inputs, labels) -> the mean of each example's worst loss."""

  @jax.jit
  def measure(params, key, inputs, labels):
    points = judge(key, lambda x: network.logits(params, x), inputs, labels)
    return jax.lax.map(lambda x: network.loss(params, x, labels), points).max(0).mean()

  return measure


def moved(params: Params, gradient: Params, length: float | jax.Array) -> Params:
  """The parameters after a step along -gradient."""
  return jax.tree.map(lambda p, z: p - length * z, params, gradient)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """The mean, and its standard error."""
  return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
