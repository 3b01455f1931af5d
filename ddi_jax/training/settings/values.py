"""Check the type and the range of each setting."""

from collections.abc import Callable, Collection
import functools
import math
from typing import Any

import ml_collections
import numpy as np

from ddi_jax.data import STREAMING
from ddi_jax.gradients.per_candidate import LOSS_KEYS
from ddi_jax.training.settings.config import default_config, flatten
from ddi_jax.training.settings.optimizers import OPTIMIZERS, SCHEDULES
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.threats import NORMS

ATTACK_DTYPES = ("float32", "bfloat16")
BATCH_NORM_MODES = ("train", "eval")
INT_END = 2**31
# Maximum length of a tuple.  Its entries are layers, sources or steps of a schedule.
MOST_ENTRIES = 1000
# Maximum number of turns of a loop inside a step.  More would take days, and no signal
# ends a step.
MOST_TURNS = 10**6
LOOPS = (
  *("attack.steps", "warm.steps", "evaluation.steps", "evaluation.restarts"),
  *("danskin.max_iterations", "proximal.iterations"),
)
EPOCHS = ("num_epochs", "attack.warmup_epochs", "evaluation.every_epochs")
_FLOAT_MAX = float(np.finfo(np.float32).max)
_TYPES: dict[type, Any] = {
  int: (int, np.integer),
  float: (int, float, np.integer, np.floating),
}
_ALLOWED: dict[type, str] = {
  bool: "True or False",
  str: "a string",
  int: "an integer < 2**31",
  float: f"a finite number <= {_FLOAT_MAX:.3g}",
  tuple: f"a tuple of at most {MOST_ENTRIES} names or numbers",
}


class Checker:
  """Checks single settings, which are named by their dotted paths."""

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config

  def __call__(
    self, field: str, allowed: str, is_allowed: Callable[[Any], bool]
  ) -> None:
    value = self._config
    for part in field.split("."):
      value = value[part]
    try:
      fine = is_allowed(value)
    except TypeError:
      fine = False
    if not fine:
      raise ConfigError(f"config.{field} must be {allowed}, got {value!r}.")

  def one_of(self, field: str, names: Collection[Any]) -> None:
    self(field, f"one of {', '.join(names)}", lambda value: value in tuple(names))

  def positive_int(self, field: str, optional: bool = False) -> None:
    allowed = "an integer >= 1" + (" or None" if optional else "")
    self(field, allowed, lambda value: (value is None and optional) or value >= 1)

  def positive(self, field: str, optional: bool = False) -> None:
    allowed = "a finite number > 0" + (" or None" if optional else "")
    self(
      field,
      allowed,
      lambda value: (value is None and optional) or 0 < value < math.inf,
    )

  def non_negative(self, field: str) -> None:
    self(field, "a finite number >= 0", lambda value: 0 <= value < math.inf)


def check_plain_values(check: Checker) -> None:
  """Check the ranges that only the training program knows."""
  check("seed", "an integer in [0, 2**31)", lambda value: 0 <= value < 2**31)
  check("data.split_seed", "an integer >= 0", lambda value: value >= 0)
  check("data.pad", "an integer >= 0", lambda value: value >= 0)
  check("mesh.fsdp", "True or False", lambda value: isinstance(value, bool))
  for field in (
    *("num_restarts", "batch_size", "data.validation_size"),
    *("attack.steps", "evaluation.steps"),
    *("evaluation.batch_size", "evaluation.restarts"),
  ):
    check.positive_int(field)
  for field in (
    *("restarts_at_a_time", "gradients_at_a_time", "warm.steps", "warm.reset_epochs"),
    *("data.limit", "data.resolution"),
    *("evaluation.validation_limit", "evaluation.test_limit"),
  ):
    check.positive_int(field, optional=True)
  for field in ("num_epochs", "optimizer.learning_rate", "evaluation.every_epochs"):
    check.positive(field)
  for field in ("attack.step_size", "evaluation.step_size", "proximal.step"):
    check.positive(field, optional=True)
  for norm in NORMS:
    check.positive(f"radii.{norm}")
  for field in ("attack.epsilon", "attack.warmup_epochs"):
    check.non_negative(field)
  # `check_against_data` checks the number of steps, which depends on the data.
  for field in EPOCHS:
    check(field, "< 2**31", lambda value: value < INT_END)


def check_choices(check: Checker) -> None:
  """Check the names that are looked up in a table, except the user's own pieces."""
  check.one_of("data.streaming", STREAMING)
  check.one_of("attack.norm", NORMS)
  check.one_of("attack.dtype", ATTACK_DTYPES)
  check.one_of("attack.batch_norm", BATCH_NORM_MODES)
  check.one_of("gradient.batch_norm", BATCH_NORM_MODES)
  check.one_of("gradient.loss_keys", LOSS_KEYS)
  check.one_of("optimizer.name", OPTIMIZERS)
  check.one_of("optimizer.schedule", SCHEDULES)
  check(
    "evaluation.norms",
    f"a tuple without repetition of {', '.join(NORMS)}",
    lambda value: (
      not isinstance(value, str)
      and all(norm in NORMS for norm in value)
      and len(set(value)) == len(value)
    ),
  )


def check_types(check: Checker) -> None:
  """Check that each setting has its type, and that a device can represent it.

  Numbers on a device are int32 and float32.  The user's own pieces check the settings
  in their groups.
  """
  defaults = default_config()
  for field, default in flatten(defaults).items():
    group, _, name = field.rpartition(".")
    kind = (defaults[group] if group else defaults).get_type(name)
    if default is None:
      check(field, f"{_ALLOWED[kind]} or None", functools.partial(_is_or_none, kind))
    else:
      check(field, _ALLOWED[kind], functools.partial(_is, kind))


def check_loops(check: Checker) -> None:
  """Check that no loop inside a step has more than `MOST_TURNS` turns."""
  for field in LOOPS:
    check(field, f"<= {MOST_TURNS}", lambda value: value is None or value <= MOST_TURNS)


def _is_or_none(kind: type, value: Any) -> bool:
  return value is None or _is(kind, value)


def _is(kind: type, value: Any) -> bool:
  if kind in (bool, str):
    return isinstance(value, kind)
  if kind is tuple:
    if isinstance(value, str):  # A later check says what the tuple must contain.
      return True
    return isinstance(value, tuple | list) and (
      len(value) <= MOST_ENTRIES
      and all(
        isinstance(entry, str) or _is(float if isinstance(entry, float) else int, entry)
        for entry in value
      )
    )
  if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
    return False
  return abs(value) < INT_END if kind is int else abs(value) <= _FLOAT_MAX
