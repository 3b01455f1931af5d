"""The signs of an evaluation that should not be trusted."""

import itertools

import jax
import jax.numpy as jnp
from linear_model import KEY, problem
import pytest

from ddi_jax.attacks import check_model


def messages(model, inputs=None, **settings):
  p = problem()
  inputs = p.inputs if inputs is None else inputs
  return check_model(model, inputs, p.labels, **settings)


def test_nothing_to_say_of_an_ordinary_model():
  p = problem()
  assert messages(p.logits_fn) == []
  two = problem(classes=2)  # No DLR.
  assert check_model(two.logits_fn, two.inputs, two.labels) == []


def hidden_generator(p):
  count = itertools.count()

  def model(x):
    noise = jax.random.normal(jax.random.key(next(count)), (len(x), 5))
    return p.logits_fn(x) + 0.1 * noise

  return model


@pytest.mark.parametrize(
  ("make", "expected"),
  [
    (hidden_generator, "two calls of the model"),
    (lambda p: lambda x: jax.nn.softmax(p.logits_fn(x)), "probabilities"),
    (lambda p: lambda x: p.logits_fn(jnp.round(x, 1)), "DLR is exactly zero at"),
    (lambda p: lambda x: 1e6 * p.logits_fn(x), "cross entropy is exactly zero"),
    (lambda p: lambda x: jnp.log(p.logits_fn(x)), "logits are not finite"),
    (lambda p: lambda x: p.logits_fn(jnp.sqrt(x - x)), "DLR are not finite"),
  ],
)
def test_suspicious_models(make, expected):
  found = messages(make(problem()))
  assert any(expected in message for message in found), found


def test_inputs_outside_the_box():
  p = problem()
  scaled = 255 * p.inputs
  assert any("leave the box [0, 1]" in m for m in messages(p.logits_fn, scaled))
  for bounds in ((0.0, 255.0), None):
    assert not any("box" in m for m in messages(p.logits_fn, scaled, bounds=bounds))


def test_a_key_asks_for_a_randomised_model():
  p = problem()

  def noisy(x, key):
    return p.logits_fn(x) + jax.random.normal(key, (len(x), 5))

  assert messages(noisy, key=KEY) == []
  (message,) = messages(lambda x, key: p.logits_fn(x), key=KEY)
  assert "not randomised" in message
