"""Optimisers and learning-rate schedules by name."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import optax

from ddi_jax.checks import keyword_parameters
from ddi_jax.training.settings import pieces

# step -> the learning rate as a fraction of the initial one.
Schedule = Callable[[Any], Any]


def sgd(
  *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """SGD with weight decay and momentum, before the learning rate.

  Args:
    momentum: in [0, 1).
    weight_decay: >= 0.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
  _check_weight_decay(weight_decay)
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def adam(*, weight_decay: float = 0.0) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter, 2019) before the learning rate.

  Args:
    weight_decay: >= 0.
  """
  _check_weight_decay(weight_decay)
  return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def constant(total: int) -> Schedule:
  """A constant learning rate."""
  del total
  return optax.constant_schedule(1.0)


def cosine(total: int) -> Schedule:
  """Half a cosine wave from 1 to 0 over `total` steps."""
  return optax.cosine_decay_schedule(1.0, total)


def step(
  total: int, *, milestones: Sequence[float] = (0.5, 0.75), decay: float = 0.1
) -> Schedule:
  """A learning rate that drops at given points of the run.

  Args:
    total: number of steps.
    milestones: increasing fractions of the run in (0, 1).
    decay: factor at each milestone, in (0, 1].
  """
  if not all(
    isinstance(milestone, float) and 0 < milestone < 1 for milestone in milestones
  ) or list(milestones) != sorted(set(milestones)):
    raise ValueError(
      f"milestones must be increasing fractions in (0, 1), got {milestones!r}."
    )
  if not 0 < decay <= 1:
    raise ValueError(f"decay must be in (0, 1], got {decay!r}.")
  boundaries: dict[int, float] = {}
  for milestone in milestones:
    # In a short run, several milestones can be at the same step.
    boundary = round(milestone * total)
    boundaries[boundary] = boundaries.get(boundary, 1.0) * decay
  return optax.piecewise_constant_schedule(1.0, boundaries)


OPTIMIZERS = {"sgd": sgd, "adam": adam}
SCHEDULES = {"constant": constant, "cosine": cosine, "step": step}


def create_rule(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """The optimiser's rule from a direction to an update, before the learning rate.

  Raises:
    ConfigError: for settings that the optimiser refuses.
  """
  return _create(OPTIMIZERS[config.optimizer.name], config)


def create_schedule(config: ml_collections.ConfigDict, total: int) -> Schedule:
  """The learning rate by step, as a fraction of `config.optimizer.learning_rate`.

  Raises:
    ConfigError: for settings that the schedule refuses.
  """
  return _create(SCHEDULES[config.optimizer.schedule], config, total)


def _create(
  factory: Callable[..., Any], config: ml_collections.ConfigDict, *args: Any
) -> Any:
  names = set(keyword_parameters(factory)) & set(config.optimizer)
  settings = {name: config.optimizer[name] for name in names}
  return pieces.call(factory, settings, "optimizer", *args)


def _check_weight_decay(weight_decay: float) -> None:
  if not 0 <= weight_decay < float("inf"):
    raise ValueError(
      f"weight_decay must be a finite number >= 0, got {weight_decay!r}."
    )
