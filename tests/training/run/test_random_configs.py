"""Configs at random: each trains with finite figures or is refused by name.

RANDOM_CONFIGS=2000 RANDOM_CONFIGS_SEED=1 python -m pytest -n 0 -s \
  tests/training/run/test_random_configs.py

There are 200 by default.  Of those that are accepted, a twentieth is trained, and of
another the step is traced; the others pass all checks before that, which take no time.
"""

import collections
import json
import math
import os
import random
import re
import time

import jax
import numpy as np
import pytest

from ddi_jax import training
from ddi_jax.data import DataError
from ddi_jax.training.run import program
from ddi_jax.training.run.experiment import image_kind
from ddi_jax.training.settings.check import flatten
from ddi_jax.training.settings.methods import METHODS
from ddi_jax.training.settings.sources import SOURCES
from ddi_jax.training.settings.threats import NORMS

NUM_CASES = int(os.environ.get("RANDOM_CONFIGS", "200"))
SEED = int(os.environ.get("RANDOM_CONFIGS_SEED", "0"))
# One step of the smallest network; what is not drawn stays so, to share programs.
TINY = {
  "model.name": "mlp",
  "model.layers": (4,),
  "batch_size": 8,
  "num_epochs": 0.1,
  "num_restarts": 2,
  "attack.steps": 1,
  "data.limit": 16,
  "evaluation.steps": 1,
  "evaluation.batch_size": 16,
}
ENTRIES = [name + count for name in SOURCES for count in ("", ":1", ":2", ":3")]
PIECES = {
  "method": [*METHODS, *METHODS, "trades", "nowhere:method", "os:sep", ""],
  "sources": [(), (), (), ("uniform:0",), ("uniform:x",), "warm", ("",), ("a:b:2",)],
  "model.name": ["mlp", "mlp", "mlp", "mlp", "small", "vgg", "json:loads"],
  "optimizer.name": ["sgd", "adam", "lion"],
  "optimizer.schedule": ["constant", "cosine", "step", "linear"],
  "evaluation.norms": [(), (), ("l2",), NORMS, ("l2", "l2"), ("l3",)],
  "attack.norm": [*NORMS, *NORMS, "l3"],
  "data.name": ["digits"] * 9 + ["imagenet", "json:loads"],
}
VALUES = {
  bool: [True, False],
  int: [0, 1, 2, 3, 4, 5, 8, -1, 10**6, 10**9, 2**31 - 1, 2**31, 10**30],
  float: [
    *(0.0, 1e-3, 0.1, 0.25, 0.5, 1.0, 2.0, -0.1),
    *(1e-300, 1e-38, 1e30, 1e38, 1e300, math.inf, math.nan),
  ],
  str: ["", "l2", "best", "last", "train", "eval", "never", "none", "a/../b", "\0"],
  tuple: [
    (),
    (1,),
    (0.5,),
    (2, 2),
    (0.2, 0.5),
    (-1, 1),
    ("a",),
    (10**30,),
    (1,) * 2000,
  ],
}
ANYTHING = [None, True, 3, 0.5, "x", (), (None,), ((1,),), {}, b"x"]
REASONS = {
  training.ConfigError: r"config\.\w|needs at least .* of memory .*reduce config\.",
  DataError: r"is not prepared in",
  training.TrainingError: r"(loss|param_norm) is \S+ after step \d+: training stopped",
}


def draw(rng):
  """Changes of a tiny config, as a dict."""
  changes = dict(TINY)
  for field in rng.sample(list(PIECES), rng.choice((0, 1, 1, 2, 3))):
    changes[field] = rng.choice(PIECES[field])
  if rng.random() < 0.2:
    changes["sources"] = tuple(rng.choices(ENTRIES, k=rng.choice((1, 1, 2, 3))))
  config = training.default_config()
  for field in rng.sample(list(flatten(config)), rng.choice((0, 1, 1, 2))):
    group, _, name = field.rpartition(".")
    kind = (config[group] if group else config).get_type(name)
    values = PIECES.get(field) or (VALUES[kind] if rng.random() < 0.9 else ANYTHING)
    changes[field] = rng.choice(values)
  return changes


def create(changes, drop):
  config = training.default_config()
  for field, value in changes.items():
    group, _, name = field.rpartition(".")
    section = config[group] if group else config
    with section.ignore_type():
      section[name] = value
  return training.drop_unused(config) if drop else config


def check(config):
  """All that `training.train` refuses before it makes an experiment; the data."""
  program.check_config(config)
  splits = training.load_data(config)
  program.check_against_data(config, splits.train)
  program._check_memory(config, image_kind(splits), len(splits.train))
  return splits


def trace(config, splits):
  """The step, up to its compilation."""
  experiment = training.create_experiment(config, splits)
  batch = splits.train.read(np.arange(config.batch_size))
  batch["index"] = np.arange(config.batch_size)
  state = jax.eval_shape(experiment.start)
  experiment.train_step.lower(state, batch, experiment.hyperparameters)


def is_endless(changes):
  """Whether a count is allowed, but takes hours: 10**9 steps of an attack."""
  return any(isinstance(x, int) and x >= 10**6 for x in changes.values())


def outcome(number, seed, workdir):
  """How it ended: accepted or the refusal's name; raises what is a fault."""
  rng = random.Random(f"{seed} {number}")
  changes, drop = draw(rng), rng.random() < 0.5
  try:
    config = create(changes, drop)
    if number % 20 == 0 and not is_endless(changes):
      summary = training.train(config, workdir / str(number))
      json.dumps(summary, allow_nan=False)
      return "trained"
    splits = check(config)
    if number % 10 == 0:
      trace(config, splits)
      return "traced"
    return "accepted"
  except tuple(REASONS) as error:
    if not re.search(REASONS[type(error)], str(error)):
      raise
    return type(error).__name__


def describe(number, seed):
  rng = random.Random(f"{seed} {number}")
  changes = {field: value for field, value in draw(rng).items() if field not in TINY}
  return f"case {number} of seed {seed}, {str(changes)[:300]}"


@pytest.mark.slow
def test_each_trains_or_is_refused_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr(program.figures, "save_curves", lambda *arguments: None)
  outcomes, seconds, faults = collections.Counter(), collections.Counter(), []
  for number in range(NUM_CASES):
    began = time.monotonic()
    try:
      ended = outcome(number, SEED, tmp_path)
    except Exception as error:
      ended = "fault"
      faults.append(f"{describe(number, SEED)}: {type(error).__name__}: {error}"[:600])
      print(faults[-1])
    outcomes[ended] += 1
    seconds[ended] += time.monotonic() - began
    if number % 100 == 99:
      jax.clear_caches()
      times = {name: round(value) for name, value in seconds.items()}
      print(f"{number + 1} configs: {dict(outcomes)}, in seconds {times}", flush=True)
  assert not faults, "\n".join(faults)
  assert outcomes["trained"] > 0
  assert outcomes["ConfigError"] > NUM_CASES / 10
