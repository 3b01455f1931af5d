"""The tables of docs/composing.md, row by row."""

import functools
from pathlib import Path
import re

from flax import linen, nnx
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddi_jax

PAGE = Path(__file__).parents[2] / "docs" / "composing.md"
PARAMS = {"w": jnp.array([[1.0, 2.0], [0.5, -1.0]]), "b": jnp.array([0.5, 0.1])}
GRADIENTS = jax.tree.map(
  lambda leaf, seed: (
    0.5 * jax.random.normal(jax.random.key(seed), (3, *leaf.shape)) + 1
  ),
  PARAMS,
  {"w": 0, "b": 1},
)
LOSSES = jnp.array([1.0, 0.9, 0.8])
LABELS = {"w": "first", "b": "second"}
ONLY_W = {"w": True, "b": False}


def direction():
  return ddi_jax.danskin_direction()


def after(*transformations):
  return optax.chain(direction(), *transformations)


def whole(learning_rate, bundle_step):
  return optax.chain(
    ddi_jax.danskin_direction(bundle_step=bundle_step), optax.sgd(learning_rate)
  )


WORKS = {
  "`sgd`": lambda: after(optax.sgd(0.1)),
  "`adam`": lambda: after(optax.adam(0.1)),
  "`lion`": lambda: after(optax.lion(0.1)),
  "`clip_by_global_norm`": lambda: after(
    optax.clip_by_global_norm(0.5), optax.sgd(0.1)
  ),
  "`contrib.muon`": lambda: after(optax.contrib.muon(0.1)),
  "`contrib.prodigy`": lambda: after(optax.contrib.prodigy(1.0)),
  "`contrib.schedule_free_sgd`": lambda: after(optax.contrib.schedule_free_sgd(0.1)),
  "`ema`": lambda: after(optax.ema(0.9), optax.sgd(0.1)),
  "`partition`": lambda: after(
    optax.partition({"first": optax.sgd(0.1), "second": optax.adam(0.1)}, LABELS)
  ),
  "`masked`": lambda: after(
    optax.masked(optax.add_decayed_weights(0.1), ONLY_W), optax.sgd(0.1)
  ),
  "`freeze`": lambda: after(optax.transforms.freeze(ONLY_W), optax.sgd(0.1)),
  "`MultiSteps`": lambda: after(
    optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
  ),
  "`apply_if_finite`": lambda: after(optax.apply_if_finite(optax.sgd(0.1), 5)),
  "`conditionally_transform`": lambda: after(
    optax.transforms.conditionally_transform(optax.sgd(0.1), lambda step: step < 5)
  ),
  "`flatten`": lambda: after(optax.flatten(optax.adam(0.1))),
  "`inject_hyperparams`": lambda: optax.inject_hyperparams(whole)(
    learning_rate=0.1, bundle_step=0.2
  ),
  "`named_chain`": lambda: optax.named_chain(
    ("direction", direction()), ("step", optax.sgd(0.1))
  ),
}
ELSEWHERE = {"`nnx.Optimizer`", "linen's `TrainState`"}
FAILS = {
  "`apply_if_finite` around the chain": (
    lambda: optax.apply_if_finite(after(optax.sgd(0.1)), 5),
    (TypeError, "cond branches must have equal output types"),
  ),
  "`conditionally_transform` around the chain": (
    lambda: optax.transforms.conditionally_transform(
      after(optax.sgd(0.1)), lambda step: step < 5
    ),
    (TypeError, "cond branches must have equal output types"),
  ),
  "`flatten` around the chain": (
    lambda: optax.flatten(after(optax.sgd(0.1))),
    (ValueError, r"gradient must have shape \[K, \*param\]"),
  ),
  "`MultiSteps` around the chain": (
    lambda: optax.MultiSteps(after(optax.sgd(0.1)), 2).gradient_transformation(),
    # Before optax 0.2.8, jax refuses to add up arrays of different rank.
    (ValueError, r"must have shape \[K, \*param\]|could not be broadcast"),
  ),
}
UNSEEN = {
  "`sgd` before the direction",
  "`clip_by_global_norm` before the direction",
  "`zero_nans` before the direction",
  "`masked` around the chain",
  "complex parameters",
}


def rows_of(page, header):
  """The first cells of a table, one for each name in them."""
  table = page.split(f"| {header} |")[1].split("\n\n")[0]
  return [line.split(" | ")[0][2:] for line in table.splitlines()[2:]]


def test_every_row_is_tested():
  page = PAGE.read_text()
  works = rows_of(page, "works after the direction")
  assert {name for row in works for name in row.split(", ")} == WORKS.keys() | ELSEWHERE
  assert set(rows_of(page, "does not work")) == FAILS.keys() | UNSEEN


def steps(optimizer, count=3, gradients=GRADIENTS):
  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(gradients, state, params, losses=LOSSES)
    return optax.apply_updates(params, updates), state

  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(count):
    params, state = step(params, state)
  return params, state


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=[pytest.mark.slow] * (name != "`sgd`")) for name in WORKS],
)
def test_works(name):
  params, state = steps(WORKS[name]())
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)
  moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), params, PARAMS)
  assert moved == ({"w": False, "b": True} if name == "`freeze`" else dict(w=1, b=1))
  assert optax.tree_utils.tree_get(state, "norm") > 0


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out():
  spoiled = {"w": GRADIENTS["w"].at[1, 0, 0].set(jnp.nan), "b": GRADIENTS["b"]}
  params, state = steps(WORKS["`apply_if_finite`"](), gradients=spoiled)
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  assert optax.tree_utils.tree_get(state, "notfinite_count") == 3
  params, _ = steps(after(optax.sgd(0.1)), gradients=spoiled)
  assert not np.any(np.isfinite(params["w"]))


@pytest.mark.parametrize("name", FAILS)
def test_fails(name):
  make, (error, message) = FAILS[name]
  with pytest.raises(error, match=message):
    steps(make(), count=1)


@pytest.mark.slow
def test_what_scales_all_gradients_before_is_lost():
  expected, _ = steps(direction(), count=1)
  for before in (optax.sgd(0.01), optax.sgd(10.0)):
    params, _ = steps(optax.chain(before, direction()), count=1)
    # The sign of sgd comes through, its rate does not.
    for name, start in PARAMS.items():
      np.testing.assert_allclose(
        params[name] - start, start - expected[name], rtol=1e-4, atol=1e-6
      )
  params, _ = steps(optax.chain(optax.clip_by_global_norm(0.1), direction()), count=1)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4), params, expected
  )


def test_zero_nans_before_hides_a_candidate():
  spoiled = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), GRADIENTS)
  params, state = steps(optax.chain(optax.zero_nans(), direction()), 1, spoiled)
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  assert optax.tree_utils.tree_get(state, "norm") == 0


@pytest.mark.slow
def test_masked_around_leaves_k_gradients():
  optimizer = optax.masked(after(optax.sgd(0.1)), ONLY_W)
  updates, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
  assert updates["b"].shape == (3, 2)


def test_complex_parameters_are_refused():
  params = jnp.ones(2, jnp.complex64)
  calls = [
    lambda: direction().update(jnp.ones((3, 2), jnp.complex64), None, params),
    lambda: ddi_jax.candidate_gradients(
      lambda p, x, y: jnp.abs(x @ p - y), params, jnp.ones((2, 3, 2)), jnp.ones(3)
    ),
  ]
  for call in calls:
    with pytest.raises(ValueError, match="must be floating point, got complex64"):
      call()


def test_the_state_can_be_told_apart():
  def is_direction(path, value):
    del value
    return getattr(path[-1], "tuple_name", None) == "DirectionState"

  class Other(ddi_jax.DirectionState):
    """Another state with the same field."""

  other = optax.GradientTransformation(
    lambda params: Other(*jnp.zeros(6)), lambda u, s, p=None: (u, s)
  )
  schedule = optax.cosine_decay_schedule(0.1, 100)
  optimizer = optax.chain(
    optax.inject_hyperparams(whole)(learning_rate=schedule, bundle_step=0.2), other
  )
  _, state = steps(optimizer)
  get = optax.tree_utils.tree_get
  with pytest.raises(KeyError, match="Found multiple values"):
    get(state, "norm")
  assert get(state, "norm", filtering=is_direction) > 0
  with pytest.raises(KeyError, match="Found multiple values"):
    get(state, "learning_rate")
  rate = get(state, "learning_rate", filtering=lambda p, v: isinstance(v, jax.Array))
  np.testing.assert_allclose(rate, schedule(2), rtol=1e-6)


def model_loss(apply):
  def loss_fn(params, inputs, labels):
    return (apply(params, inputs)[:, 0] - labels) ** 2

  return loss_fn


def batch_gradients(loss_fn, params):
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=0.1)
  gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=2)
  inputs = jnp.linspace(0.2, 0.8, 8).reshape(4, 2)
  return gradients_fn(params, inputs, jnp.ones(4), jax.random.key(0))


@pytest.mark.slow
def test_nnx_optimizer():
  model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, whole(0.1, 0.5), wrt=nnx.Param)
  graph, params = nnx.split(model)
  loss_fn = model_loss(lambda params, x: nnx.merge(graph, params)(x))
  gradients, info = batch_gradients(loss_fn, params)
  before = jnp.array(model.kernel[...])
  optimizer.update(model, gradients, losses=info.losses.mean(axis=1))
  assert np.any(model.kernel[...] != before)


def test_linen_train_state():
  model = linen.Dense(1)
  params = model.init(jax.random.key(0), jnp.ones((1, 2)))
  state = TrainState.create(
    apply_fn=model.apply, params=params, tx=after(optax.sgd(0.1))
  )
  gradients, info = batch_gradients(model_loss(model.apply), params)
  moved = state.apply_gradients(grads=gradients)
  assert jax.tree.map(jnp.shape, moved.params) == jax.tree.map(jnp.shape, params)
  state = TrainState.create(apply_fn=model.apply, params=params, tx=whole(0.1, 0.5))
  updates, opt_state = state.tx.update(
    gradients, state.opt_state, params, losses=info.losses.mean(axis=1)
  )
  state = state.replace(
    params=optax.apply_updates(params, updates), opt_state=opt_state, step=1
  )
  assert np.any(state.params["params"]["kernel"] != params["params"]["kernel"])


@pytest.mark.slow
def test_the_pages_code_runs():
  code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
  names = {}
  exec(code[0], names)
  params = {"w": jnp.ones(2)}
  optimizer = names["optimizer"]
  updates, names["state"] = optimizer.update(
    {"w": jnp.eye(2)}, optimizer.init(params), params
  )
  assert updates["w"].shape == (2,)
