"""The method in one file agrees with the library."""

import ast
import functools
import importlib.util
import io
from pathlib import Path
import re
import tokenize

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import min_norm_by_enumeration

import ddi_jax

PATH = Path(__file__).parents[2] / "examples" / "one_file.py"
EPS = float(np.finfo(np.float32).eps)
NUM_RESTARTS = 4
KEY = jax.random.key(1)


def load_example():
  spec = importlib.util.spec_from_file_location("one_file", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


one_file = load_example()
solve = jax.jit(one_file.min_norm_weights)
attack = ddi_jax.pgd(
  ddi_jax.linf(one_file.EPSILON), steps=7, step_size=one_file.EPSILON / 4
)


@pytest.fixture(autouse=True)
def allow_rank_promotion():
  """Allow sums of `[B, n]` and `[n]`, as the example has them for brevity."""
  with jax.numpy_rank_promotion("allow"):
    yield


def make_problem():
  """Return (params, inputs `[32, 64]`, labels `[32]`)."""
  rng = np.random.default_rng(0)
  params = {
    "w1": rng.normal(size=(64, 16)) / 4,
    "b1": rng.normal(size=16) / 4,
    "w2": rng.normal(size=(16, 10)) / 4,
    "b2": rng.normal(size=10) / 4,
  }
  params = jax.tree.map(jnp.float32, params)
  inputs = jnp.float32(rng.uniform(size=(32, 64)))
  return params, inputs, jnp.arange(32) % 10


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def vectors_of_cosine(rng, size, cosine):
  """Return vectors `[size, 200]` whose pairs have about this cosine.

  Their norms differ from 1 by about 1 - cosine.  If they differed by much more, the
  shortest vector alone would be the minimum-norm point.
  """
  noise = np.sqrt(1 / cosine - 1) * rng.normal(size=(size, 200))
  vectors = rng.normal(size=200) + noise
  norms = 1 + (1 - cosine) * rng.normal(size=(size, 1))
  vectors *= norms / np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors.astype(np.float32)


@jax.jit
def library_gradients(params, inputs, labels, key):
  """Return (gradients `[K, *param]`, candidates `[K, B, n]`)."""
  gradients_fn = ddi_jax.restart_gradients(one_file.loss_fn, attack, NUM_RESTARTS)
  gradients, info = gradients_fn(params, inputs, labels, key)
  return gradients, info.candidates


@jax.jit
def one_file_candidates(params, inputs, labels, key):
  keys = jax.random.split(key, NUM_RESTARTS)
  return jax.vmap(lambda key: one_file.pgd_attack(params, inputs, labels, key))(keys)


@pytest.mark.slow
def test_the_attack_returns_the_same_candidates_from_the_same_key():
  params, inputs, labels = make_problem()
  _, expected = library_gradients(params, inputs, labels, KEY)
  candidates = one_file_candidates(params, inputs, labels, KEY)
  # The start and the 7 steps each round numbers in [0, 1] at most twice.  A larger
  # error needs a gradient that is 0 up to rounding, so that the order of summation
  # decides its sign: that is one in a million or so.
  assert candidates.shape == (NUM_RESTARTS, *inputs.shape)
  assert np.mean(np.abs(candidates - expected) > 16 * EPS) <= 1e-3
  assert np.max(np.abs(candidates - inputs)) > 0.9 * one_file.EPSILON


def test_the_gradients_are_those_of_the_library_at_the_same_candidates():
  params, inputs, labels = make_problem()
  candidates = one_file_candidates(params, inputs, labels, KEY)
  gradients_fn = functools.partial(ddi_jax.candidate_gradients, one_file.loss_fn)
  expected, _ = jax.jit(gradients_fn)(params, candidates, labels)
  gradients = jax.jit(one_file.restart_gradients, static_argnums=4)(
    params, inputs, labels, KEY, NUM_RESTARTS
  )
  for name, leaf in gradients.items():
    assert leaf.shape == (NUM_RESTARTS, *params[name].shape)
    # Sums over 64 inputs and over 32 examples round by at most 96 eps of their terms.
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(leaf, expected[name], atol=96 * EPS * scale)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 10])
def test_the_weights_agree_on_random_gram_matrices(size):
  rng = np.random.default_rng(size)
  for common in (0, 0.5, 1):
    for _ in range(7):
      vectors = rng.normal(size=(size, 50)) + common * rng.normal(size=50)
      gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
      weights = solve(gram)
      # The slopes round by about 2 eps of the entries of the Gram matrix, which are up
      # to 150.  The curvature along the simplex is 10 or more.  The quotient, 4e-6,
      # bounds the error of the weights.
      expected = ddi_jax.min_norm_weights(gram).weights
      np.testing.assert_allclose(weights, expected, atol=4e-6)
      np.testing.assert_allclose(weights.sum(), 1, atol=size * EPS)
      assert weights.min() >= 0
      for scale in (2.0**-90, 2.0**90):  # Powers of 2 change no digits.
        np.testing.assert_array_equal(solve(scale * gram), weights)


@pytest.mark.parametrize("size", [2, 10])
def test_the_weights_agree_on_nearly_collinear_vectors(size):
  rng = np.random.default_rng(size)
  for cosine in (0.99, 0.999, 0.99999):
    vectors = vectors_of_cosine(rng, size, cosine)
    gram = vectors @ vectors.T
    weights = solve(gram)
    solution = ddi_jax.min_norm_weights(jnp.asarray(gram))
    # The library rounds slopes of size 1, while the curvature is only 1 - cosine.
    atol = 10 * EPS / (1 - cosine)
    np.testing.assert_allclose(weights, solution.weights, atol=atol)
    # The norm depends on the weights to second order only.
    value = weights @ gram @ weights
    np.testing.assert_allclose(value, solution.squared_norm, rtol=10 * EPS)
    # The example subtracts a constant, without rounding because all entries are nearly
    # equal.  Its slopes then have the size of the curvature, and round by eps of it.
    _, expected = min_norm_by_enumeration(gram)
    np.testing.assert_allclose(weights, expected, atol=10 * EPS)


PARAMS = {"w": jnp.zeros((15, 10)), "b": jnp.zeros(50)}


def as_gradients(vectors):
  """Return the rows of `[K, 200]` as gradients with respect to `PARAMS`."""
  return {"w": vectors[:, :150].reshape(-1, 15, 10), "b": vectors[:, 150:]}


@functools.cache
def direction_fn(module, *, normalize):
  """Return the function of the module: gradients `[K, *param]` -> direction `[200]`."""
  transformation = module.danskin_direction(normalize=normalize)
  state = transformation.init(PARAMS)
  update = jax.jit(transformation.update)

  def direction_of(gradients):
    direction, _ = update(gradients, state, PARAMS)
    assert jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, PARAMS)
    return flat(direction)

  return direction_of


@pytest.mark.slow
@pytest.mark.parametrize(("size", "normalize"), [(1, False), (5, True)])
def test_the_directions_agree(size, normalize):
  rng = np.random.default_rng(size)
  for cosine in (0.1, 0.9, 0.999, 0.99999):
    for scale in (1e-20, 1, 1e15):
      gradients = as_gradients(scale * vectors_of_cosine(rng, size, cosine))
      direction = direction_fn(one_file, normalize=normalize)(gradients)
      expected = direction_fn(ddi_jax, normalize=normalize)(gradients)
      # With the shortest gradient as the reference, both round inner products by eps
      # |g| |g_i - g_j| and err in the weights by eps |g| / |g_i - g_j|.  This moves the
      # combination by eps |g|, times a few.
      length = 1 if normalize else scale
      np.testing.assert_allclose(direction, expected, atol=10 * EPS * length)
      if normalize:
        np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=10 * EPS)


@pytest.mark.parametrize("module", [one_file, ddi_jax], ids=["one_file", "ddi_jax"])
def test_the_direction_is_zero_at_a_stationary_point(module):
  random = np.random.default_rng(0).normal(size=(5, 200)).astype(np.float32)
  around_zero = random - random.mean(axis=0)
  opposite = np.outer(np.float32([1, -1, 2, 1, 3]), random[0])
  for vectors in (around_zero, opposite, np.zeros_like(random)):
    direction = direction_fn(module, normalize=True)(as_gradients(vectors))
    np.testing.assert_array_equal(direction, np.zeros(200))


def train(train_step, optimizer):
  """Return the change `[d]` of the parameters in ten steps."""
  start, inputs, labels = make_problem()
  params, opt_state = start, optimizer.init(start)
  for step in range(10):
    key = jax.random.fold_in(jax.random.key(2), step)
    params, opt_state = train_step(params, opt_state, inputs, labels, key)
  return flat(params) - flat(start)


def train_with_library(direction):
  optimizer = optax.chain(direction(normalize=True), optax.sgd(0.1, momentum=0.5))
  update = jax.jit(optimizer.update)

  def train_step(params, opt_state, inputs, labels, key):
    gradients, _ = library_gradients(params, inputs, labels, key)
    updates, opt_state = update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return train(train_step, optimizer)


def train_with_one_file(num_restarts):
  optimizer = optax.chain(one_file.danskin_direction(), optax.sgd(0.1, momentum=0.5))
  train_step = functools.partial(one_file.train_step, optimizer, num_restarts)
  return train(train_step, optimizer)


@pytest.mark.slow
def test_ten_steps_of_both_methods_end_at_the_same_parameters():
  expected_danskin = train_with_library(ddi_jax.danskin_direction)
  expected_pgd = train_with_library(ddi_jax.first_restart_direction)
  danskin, pgd = train_with_one_file(NUM_RESTARTS), train_with_one_file(1)
  # Each unit direction errs by about 10 eps, and the steps have a total length of at
  # most 2: together 2e-6.  Beyond that, a sign in an attack that rounding decides turns
  # a direction by 1e-3 and moves the parameters by 2e-4; a few may occur among the
  # 600,000 signs.
  tolerance = 1e-3
  assert np.linalg.norm(danskin - expected_danskin) <= tolerance
  assert np.linalg.norm(pgd - expected_pgd) <= tolerance
  # The tolerance tells the methods apart, and a step from no step.
  assert np.linalg.norm(expected_danskin - expected_pgd) > 10 * tolerance
  assert np.linalg.norm(expected_danskin) > 1


def count_lines_of_code(source):
  """Return the number of lines that are not blank, comment or docstring."""
  docstring_lines = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
      first = node.body[0]
      if ast.get_docstring(node) is not None:
        docstring_lines |= set(range(first.lineno, first.end_lineno + 1))
  layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
  layout |= {tokenize.INDENT, tokenize.DEDENT}
  lines = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type not in layout:
      lines |= set(range(token.start[0], token.end[0] + 1))
  return len(lines - docstring_lines)


def test_the_example_has_at_most_90_lines_of_code():
  source = '"""Text."""\n\nx = (  # Comment.\n  1,\n\n  # Comment.\n)\n'
  assert count_lines_of_code(source) == 3
  assert count_lines_of_code(PATH.read_text()) <= 90


def test_the_example_imports_no_other_packages():
  imports = re.findall(r"^\s*(?:import|from) (\w+)", PATH.read_text(), re.MULTILINE)
  assert set(imports) == {"functools", "jax", "numpy", "optax", "sklearn"}


@pytest.mark.slow
def test_main_prints_the_robust_loss_of_both_methods(capsys):
  one_file.main(num_steps=2)
  pattern = r"^(DDi|PGD), K = \d+ +robust loss (\d+\.\d+)$"
  printed = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
  assert [method for method, _ in printed] == ["DDi", "PGD"]
  # Two steps end near the start, whose loss is a little more than log 10 = 2.3.
  assert all(1.5 < float(loss) < 3.5 for _, loss in printed)
