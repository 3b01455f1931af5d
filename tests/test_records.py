"""Records tell apart what makes a difference, and nothing else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks
from ddi_jax.records import differences, record_of


class Shift:
  """An attack of a user, with its settings in attributes."""

  def __init__(self, by):
    self.by = by

  def __call__(self, key, logits_fn, inputs, labels):
    return inputs + self.by


def shift(by, inputs):
  return inputs + by


def closure(by):
  return lambda inputs: inputs + by


def with_global(by):
  return eval("lambda inputs: inputs + by", {"by": by})


def custom_pgd(epsilon, steps):
  pgd = ddi_jax.pgd(ddi_jax.linf(epsilon), steps=steps, step_size=0.1)
  return attacks.classifier_attack(pgd, restarts=2)


def apgd(**settings):
  return attacks.apgd(ddi_jax.linf(0.1), **settings)


# (two makers of the same, a maker of something else, what differs)
CASES = {
  "number": (lambda: 0.1, lambda: 0.2, "made is 0.2"),
  "array": (lambda: np.arange(3), lambda: np.array([0, 1, 3]), "made is 'int64[3] "),
  "key": (lambda: jax.random.key(1), lambda: jax.random.key(2), "made is 'threefry"),
  "radius": (lambda: ddi_jax.l2(0.1), lambda: ddi_jax.l2(0.7), "made.epsilon is 0.7"),
  "norm": (lambda: ddi_jax.l2(0.1), lambda: ddi_jax.l1(0.1), "made.norm is 'l1'"),
  "option": (
    lambda: ddi_jax.l1(0.1),
    lambda: ddi_jax.l1(0.1, top_fraction=0.5),
    "made.steepest_ascent.top_fraction is 0.5",
  ),
  "bounds": (lambda: (0.0, 1.0), lambda: (0.0, 2.0), "made.1 is 2.0"),
  "attack": (lambda: apgd(steps=9), lambda: apgd(steps=5), "made.ascend.steps is 5"),
  "loss": (apgd, lambda: apgd(loss="dlr"), "made.runs.loss is 1"),
  "wrapped attack": (
    lambda: custom_pgd(0.1, 3),
    lambda: custom_pgd(0.1, 4),
    "made.run.attack.steps is 4",
  ),
  "object": (lambda: Shift(1), lambda: Shift(2), "made.by is 2"),
  "method": (lambda: Shift(1).__call__, lambda: Shift(2).__call__, "made.self.by is 2"),
  "partial": (
    lambda: functools.partial(shift, 1),
    lambda: functools.partial(shift, 2),
    "made.0 is 2",
  ),
  "parameters": (
    lambda: jax.tree_util.Partial(shift, {"w": jnp.ones(2)}),
    lambda: jax.tree_util.Partial(shift, {"w": jnp.zeros(2)}),
    "made.0.w is",
  ),
  "jitted": (lambda: jax.jit(closure(1)), lambda: jax.jit(closure(2)), "by is 2"),
  "default": (
    lambda: lambda x, by=1: x + by,
    lambda: lambda x, by=2: x + by,
    "default 0 is 2",
  ),
  "global": (lambda: with_global(1), lambda: with_global(2), "made.by is 2"),
  "code": (lambda: eval("lambda x: x + 1"), lambda: eval("lambda x: x + 2"), "made is"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_made_twice_is_the_same_and_something_else_is_named(name):
  make, make_other, said = CASES[name]
  record, other = record_of({"made": make()}), record_of({"made": make_other()})
  assert record == record_of({"made": make()})
  assert json.loads(json.dumps(record)) == record
  named = differences(record, other)
  assert any(said in phrase for phrase in named), named


def test_what_holds_itself_has_a_record():
  def attack(inputs):
    return attack(inputs) if later else inputs

  record = record_of({"attack": attack})
  assert list(record) == ["attack"]  # Of `later`, which is not set yet, nothing.
  later = None
  assert record_of({"attack": attack})["attack.later"] is None
