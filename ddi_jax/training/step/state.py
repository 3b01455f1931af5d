"""The state of a training step, its hyperparameters and its random keys."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddi_jax.tables import printed_as_table


@printed_as_table
class TrainState(NamedTuple):
  """Everything that changes during training.

  Attributes:
    step: number of steps taken.
    params: the model's parameters.
    model_state: the model's other arrays except random streams, such as BatchNorm's
      running statistics.
    opt_state: state of the optax chain.
    memory: perturbations stored for the training images, `[N, K, H, W, C]`, see
      training/step/warm_memory.py; () without the source warm.
  """

  step: jax.Array
  params: chex.ArrayTree
  model_state: chex.ArrayTree
  opt_state: chex.ArrayTree
  memory: chex.ArrayTree = ()


class Hyperparameters(NamedTuple):
  """Hyperparameters that a compiled step takes as arguments.

  Runs that differ only in these share one program in a compilation cache.

  Attributes:
    seed: seed of all random numbers, in [0, 2**31).
    learning_rate: the initial learning rate, before the schedule.
  """

  seed: Any
  learning_rate: Any


def create_train_state(
  params: chex.ArrayTree,
  model_state: chex.ArrayTree,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """The state before the first step."""
  step = jnp.zeros((), jnp.int32)
  opt_state = jax.jit(optimizer.init)(params)  # One program, not one for every shape.
  return TrainState(step, params, model_state, opt_state)


def random_key(seed: Any, purpose: str, index: Any) -> jax.Array:
  """The random key for a purpose and the index of a step or batch.

  The purposes "training", "direction" and "dropout" take the index of a step, and
  "evaluation" and "audit" that of a batch.  All keys are different.
  """
  purposes = ("training", "evaluation", "direction", "audit", "dropout")
  number = purposes.index(purpose)
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), index)
