"""Networks of every library as pure functions: their state, their random numbers."""

import equinox as eqx
from flax import linen, nnx
import haiku as hk
import jax
import jax.numpy as jnp
from library_networks import FACTORIES, functional
import numpy as np
import pytest

import ddi_jax
from ddi_jax import models

KEY, OTHER_KEY = jax.random.split(jax.random.key(0))
IMAGES = jax.random.uniform(KEY, (6, 4, 4, 1))
LABELS = jnp.arange(6) % 3
ATTACK = ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=0.1)


@pytest.fixture(scope="module", params=FACTORIES)
def network(request):
  """(jitted apply, params, model state) of a library's network."""
  apply, params, state = functional(request.param, (4, 4, 1), 3)
  return jax.jit(apply, static_argnames="train"), params, state


def assert_same(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def is_random(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.mark.slow
def test_statistics_are_apart_from_what_is_random(network):
  apply, params, state = network
  assert jax.tree.leaves(state)
  assert not any(map(is_random, jax.tree.leaves((params, state))))
  evaluated, same = apply(params, state, IMAGES, train=False)
  assert evaluated.shape == (6, 3)
  assert_same(same, state)
  assert_same(apply(params, state, IMAGES, train=False, key=KEY)[0], evaluated)
  _, changed = apply(params, state, IMAGES, train=True, key=KEY)
  assert jax.tree.structure(changed) == jax.tree.structure(state)
  pairs = zip(jax.tree.leaves(changed), jax.tree.leaves(state), strict=True)
  assert all(np.shape(a) == np.shape(b) for a, b in pairs)
  # The running statistics are those of what evaluation sees afterwards.
  assert not np.allclose(apply(params, changed, IMAGES, train=False)[0], evaluated)


def test_a_key_decides_what_dropout_drops(network):
  apply, params, state = network
  logits, again, other = (
    apply(params, state, IMAGES, train=True, key=key)[0]
    for key in (KEY, KEY, OTHER_KEY)
  )
  assert_same(logits, again)
  assert not np.allclose(logits, other)
  with pytest.raises(ValueError, match="Pass key= to apply: one for each candidate"):
    apply(params, state, IMAGES, train=True)


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [None, 1])
def test_candidates_draw_each_for_itself_or_all_the_same(network, at_a_time):
  apply, params, state = network

  def loss_fn(params, inputs, labels, key):
    logits, new_state = apply(params, state, inputs, train=True, key=key)
    return ddi_jax.losses.cross_entropy(logits, labels), new_state

  candidates = jnp.broadcast_to(IMAGES, (2, *IMAGES.shape))

  @jax.jit
  def losses_of(keys):
    arguments = (loss_fn, params, candidates, LABELS)
    gradients, info = ddi_jax.candidate_gradients(
      *arguments, has_aux=True, keys=keys, at_a_time=at_a_time
    )
    recomputed, same = ddi_jax.recomputed_gradients(*arguments, has_aux=True, keys=keys)
    weights = jnp.array([0.25, 0.75])
    mixed = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), gradients)
    return info.losses, same.losses, mixed, recomputed.combine(weights), info.aux

  losses, same, mixed, recomputed, states = losses_of(jax.random.split(KEY, 2))
  assert not np.allclose(losses[0], losses[1])
  np.testing.assert_allclose(losses, same, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    mixed,
    recomputed,
  )
  mean = models.mean_state(states)
  assert jax.tree.structure(mean) == jax.tree.structure(state)
  for averaged, each in zip(
    jax.tree.leaves(mean), jax.tree.leaves(states), strict=True
  ):
    assert averaged.dtype == each.dtype
    floating = jnp.issubdtype(each.dtype, jnp.floating)
    expected = np.mean(each, axis=0) if floating else each[0]
    np.testing.assert_allclose(averaged, expected, rtol=1e-6)
  apply(params, mean, IMAGES, train=False)
  losses, *_ = losses_of(jnp.broadcast_to(KEY, 2))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def random_loss(params, inputs, labels, key):
  """Its gradient is what was drawn."""
  return params * jax.random.uniform(key) + 0 * inputs.sum(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(("loss_keys", "draws"), [("per_candidate", 3), ("shared", 1)])
def test_restarts_share_their_draw_by_choice(loss_keys, draws):
  gradients_fn = ddi_jax.restart_gradients(random_loss, ATTACK, 3, loss_keys=loss_keys)
  gradients, _ = gradients_fn(jnp.ones(()), jnp.full((2, 3), 0.5), LABELS[:2], KEY)
  assert len(np.unique(gradients)) == draws


def test_keys_that_do_not_fit_are_refused():
  with pytest.raises(
    ValueError, match="loss_keys must be one of per_candidate, shared"
  ):
    ddi_jax.restart_gradients(random_loss, ATTACK, 3, loss_keys="each")
  candidates = jnp.zeros((3, 2, 4))
  for function in (ddi_jax.candidate_gradients, ddi_jax.recomputed_gradients):
    with pytest.raises(ValueError, match=r"keys must have shape \(3,\).* got \(2,\)"):
      function(
        random_loss, jnp.ones(()), candidates, LABELS[:2], keys=jax.random.split(KEY)
      )


class WithMode(nnx.Module):
  """Takes its mode in the way of a class below."""

  def __init__(self):
    self.scale = nnx.Param(jnp.ones(()))


class Positional(WithMode):
  def __call__(self, x, train):
    return self.scale * x * (2 if train else 1)


class PositionalOnly(WithMode):
  def __call__(self, x, training, /):
    return self.scale * x * (2 if training else 1)


class Negated(WithMode):
  def __call__(self, x, *, deterministic):
    return self.scale * x * (1 if deterministic else 2)


class ByDefault(WithMode):
  def __call__(self, x, is_training=True, gain=1):
    return self.scale * x * gain * (2 if is_training else 1)


class Unknown(WithMode):
  def __call__(self, x, mode):
    return x


@pytest.mark.parametrize("kind", [Positional, PositionalOnly, Negated, ByDefault])
def test_a_mode_is_handed_on_by_its_name(kind):
  apply, params, state = models.functional(kind())
  for train, expected in ((True, 2.0), (False, 1.0)):
    assert apply(params, state, jnp.ones(()), train=train)[0] == expected


def test_an_argument_that_nothing_is_known_of_is_named():
  apply, params, state = models.functional(Unknown())
  with pytest.raises(ValueError, match=r"one of train, .* got the argument 'mode'"):
    apply(params, state, jnp.ones(()), train=True)


def test_layers_of_one_module_drop_independently():
  class Twice(nnx.Module):
    def __init__(self, rngs):
      self.first = nnx.Dropout(0.5, rngs=rngs)
      self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
      return jnp.stack([self.first(x), self.second(x)])

  apply, params, state = models.functional(Twice(nnx.Rngs(0)))
  (first, second), _ = apply(params, state, jnp.ones((2, 50)), train=True, key=KEY)
  assert not np.array_equal(first, second)


def dense(inputs):
  return hk.Linear(3)(inputs)


STATELESS = {
  "linen": (linen.Dense(3), {"inputs": jnp.ones((1, 4)), "key": KEY}),
  "haiku": (
    hk.transform(dense),
    {"inputs": jnp.ones((1, 4)), "key": KEY},
  ),
  "haiku without rng": (
    hk.without_apply_rng(hk.transform_with_state(dense)),
    {"inputs": jnp.ones((1, 4)), "key": KEY},
  ),
  "equinox": (eqx.nn.MLP(4, 3, 8, 1, key=KEY), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATELESS)
def test_a_network_without_state_needs_no_key(name):
  model, settings = STATELESS[name]
  apply, params, state = models.functional(model, **settings)
  inputs = jax.random.normal(KEY, (5, 4))
  logits, after = apply(params, state, inputs, train=True)
  assert logits.shape == (5, 3)
  assert not jax.tree.leaves(after)
  assert_same(apply(params, state, inputs, train=False)[0], logits)
  gradients = jax.grad(lambda p: apply(p, state, inputs, train=True)[0].sum())(params)
  assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradients))


def test_what_cannot_be_split_is_named():
  with pytest.raises(ValueError, match=r"Linen or Equinox, or .* got function"):
    models.functional(lambda x: x)
  for settings in ({"key": KEY}, {"inputs": IMAGES}):
    with pytest.raises(ValueError, match="must be given, got None: Linen and Haiku"):
      models.functional(linen.Dense(3), **settings)
