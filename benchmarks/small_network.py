"""A small, partly trained CELU network, for benchmarks of single steps.

The flags `--data` and `--data_dir` choose the data set: scikit-learn's digits, MNIST or
CIFAR-10.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from progress import progress

import ddi_jax
from ddi_jax import candidates as sources
from ddi_jax import data, losses, models
from ddi_jax.candidates import Source
from ddi_jax.threat_models import ThreatModel

Params = chex.ArrayTree
_DATA = flags.DEFINE_enum("data", "digits", ("digits", "mnist", "cifar10"), "Data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of TFDS' mnist and cifar10.")
# Radii of the three threat models (l_inf, l2, l1), by data set.
_RADII = {
  "digits": (0.1, 0.8, 3.0),
  "mnist": (0.15, 1.5, 10.0),
  "cifar10": (0.03, 0.5, 12.0),
}


class Network(NamedTuple):
  """A network in training.

  Attributes:
    logits: (params, inputs `[B, H, W, C]`) -> logits `[B, 10]`.
    loss: (params, inputs, labels) -> losses `[B]`.
    params: the current parameters.
    batch: () -> the next random (inputs, labels).
  """

  logits: Callable[[Params, jax.Array], jax.Array]
  loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
  params: Params
  batch: Callable[[], tuple[jax.Array, jax.Array]]


def threat_models() -> tuple[ThreatModel, ThreatModel, ThreatModel]:
  """The threat models in l_inf, l2 and l1, with the radii for the data set."""
  linf, l2, l1 = _RADII[_DATA.value]
  return ddi_jax.linf(linf), ddi_jax.l2(l2), ddi_jax.l1(l1)


def create(batch_size: int) -> Network:
  """The untrained network."""
  name = _DATA.value
  splits = data.load(name, data_dir=_DATA_DIR.value, validation_size=200, limit=20_000)
  images = jnp.asarray(splits.train.images, jnp.float32) / splits.max_value
  labels = jnp.asarray(splits.train.labels)
  model = models.create_model(
    "small",
    image_shape=images.shape[1:],
    num_classes=10,
    mean=(0.3,) * images.shape[-1],  # Roughly right for all three data sets.
    std=(0.4,) * images.shape[-1],
    settings={
      "width": 8,
      "strides": (1, 2) if name == "digits" else (2, 2),
      "activation": "celu",
      "normalization": "none",
    },
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

  return Network(logits, loss, params, batch)


def train_on_worst(
  network: Network, source: Source, steps: int, learning_rate: float = 1e-3
) -> Network:
  """Train with Adam on the worst candidates (MAX, Tramer and Boneh, 2019)."""
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
  for index in progress(range(steps)):
    key = jax.random.fold_in(jax.random.key(1), index)
    params, state = step(params, state, key, *network.batch())
  return network._replace(params=params)


def restarts_in(
  threat_models: Sequence[ThreatModel], *, steps: int, count: int
) -> Source:
  """PGD restarts in each threat model, with step size 2.5 epsilon / steps."""
  return sources.combine(
    *(
      sources.restarts(
        ddi_jax.pgd(model, steps=steps, step_size=2.5 * model.epsilon / steps), count
      )
      for model in threat_models
    )
  )


def robust_loss(
  network: Network, attacks: Source
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]:
  """Jitted (params, key, inputs, labels) -> the mean of each example's worst loss."""

  @jax.jit
  def measure(params, key, inputs, labels):
    points = attacks(key, lambda x: network.logits(params, x), inputs, labels)
    return jax.lax.map(lambda x: network.loss(params, x, labels), points).max(0).mean()

  return measure


def moved(params: Params, gradient: Params, length: float | jax.Array) -> Params:
  """The parameters after a step along -gradient."""
  return jax.tree.map(lambda p, z: p - length * z, params, gradient)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """The mean and its standard error."""
  return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
