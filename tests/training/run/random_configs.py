"""Configs at random, for `test_random_configs.py`, in a process of its own.

Each is refused by name, or trained for a step or a few, validated and tested.
"""

import collections
import contextlib
import io
import json
import math
import os
from pathlib import Path
import random
import re
import sys
import tempfile
import time

import jax

from ddi_jax import training
from ddi_jax.data import DataError
from ddi_jax.training.run import program
from ddi_jax.training.run.experiment import image_kind
from ddi_jax.training.settings.check import flatten
from ddi_jax.training.settings.methods import METHODS
from ddi_jax.training.settings.sources import SOURCES
from ddi_jax.training.settings.threats import NORMS

NUM_CASES = int(os.environ.get("RANDOM_CONFIGS", "60"))
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


def shorten(config):
  """Lowers what is allowed, but takes hours: 10**6 steps of an attack."""
  large = {
    field: 2
    for field, value in flatten(config).items()
    if type(value) is int and value >= 10**6 and "seed" not in field
  }
  if large:
    check(config)
    config.update_from_flattened_dict(large)


def outcome(number, seed, workdir):
  """How it ended: accepted or the refusal's name; raises what is a fault."""
  rng = random.Random(f"{seed} {number}")
  changes, drop = draw(rng), rng.random() < 0.5
  try:
    config = create(changes, drop)
    shorten(config)
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
      summary = training.train(config, workdir)
    json.dumps(summary, allow_nan=False)
    return "trained"
  except tuple(REASONS) as error:
    if not re.search(REASONS[type(error)], str(error)):
      raise
    return type(error).__name__


def describe(number, seed):
  rng = random.Random(f"{seed} {number}")
  changes = {field: value for field, value in draw(rng).items() if field not in TINY}
  return f"case {number} of seed {seed}, {str(changes)[:300]}"


def main():
  program.figures.save_curves = lambda *arguments: None
  outcomes, seconds, faults = collections.Counter(), collections.Counter(), 0
  for number in range(NUM_CASES):
    began = time.monotonic()
    try:
      with tempfile.TemporaryDirectory() as folder:
        ended = outcome(number, SEED, Path(folder) / "run")
    except Exception as error:
      ended = "fault"
      faults += 1
      fault = f"{describe(number, SEED)}: {type(error).__name__}: {error}"
      print(fault[:600], flush=True)
    outcomes[ended] += 1
    seconds[ended] += time.monotonic() - began
    if number % 100 == 99:
      jax.clear_caches()
      times = {name: round(value) for name, value in seconds.items()}
      print(f"{number + 1} configs: {dict(outcomes)}, in seconds {times}", flush=True)
  few = min(outcomes["trained"], outcomes["ConfigError"]) < NUM_CASES / 10
  sys.exit(1 if faults or few else 0)


if __name__ == "__main__":
  main()
