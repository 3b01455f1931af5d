"""The arrangement of repeated work, chosen from what is repeated."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from platforms import compiling_for
import pytest
from rounding import assert_sums_agree

import ddi_jax
from ddi_jax.models.convolution import conv_general_dilated
from ddi_jax.numerics import loops

INPUTS = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 8, 4))
NUMBERS = ("NHWC", "HWIO", "NHWC")


def gradient_through(conv):
  def loss(kernel, inputs):
    return jnp.sum(conv(inputs, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS) ** 2)

  return jax.grad(loss, argnums=(0, 1))


def dense(kernel, inputs):
  return jnp.sin(inputs @ kernel[0, 0]), inputs


FUNCTIONS = {
  "dense": dense,
  "lax": gradient_through(jax.lax.conv_general_dilated),
  "canonical": gradient_through(conv_general_dilated),
}


def nested(fn):
  """The same below jit, a loop and a branch, where it must be found too."""

  def wrapped(*args):
    def body(_, carry):
      return jax.lax.cond(True, jax.jit(fn), fn, *args), carry[1]

    return jax.lax.fori_loop(0, 2, body, (fn(*args), 0))

  return wrapped


@pytest.mark.parametrize("wrap", [lambda fn: fn, nested])
def test_convolutions_follow_one_another_and_only_canonical_ones_are_looped_on_a_cpu(
  wrap,
):
  functions = {name: wrap(fn) for name, fn in FUNCTIONS.items()}

  def arrange(name, at_a_time=None):
    return loops.arrange(6, at_a_time, loops.Traced(functions[name], KERNEL, INPUTS))

  assert arrange("dense") == (True, 6, True)
  assert arrange("canonical") == (False, 2, True)
  # All six in one program: there is no loop to slow them down.
  assert arrange("lax") == (False, 6, False)
  with compiling_for("gpu"):
    assert arrange("dense") == (True, 6, True)
    assert arrange("lax") == (False, 1, False)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_stated_number_at_a_time_is_kept(name, backend):
  for at_a_time, expected in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 6), (99, 6)):
    with compiling_for(backend):
      arrangement = loops.arrange(
        6, at_a_time, loops.Traced(FUNCTIONS[name], KERNEL, INPUTS)
      )
    assert arrangement.group_size == expected


@pytest.mark.parametrize(
  ("count", "limit", "expected"), [(6, 4, 3), (7, 6, 1), (5, 5, 5), (1, 9, 1)]
)
def test_largest_divisor(count, limit, expected):
  assert loops.largest_divisor(count, limit) == expected


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [None, 1, 2, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_map_leading_gives_the_same_in_every_arrangement(name, at_a_time):
  fn = FUNCTIONS[name]
  xs = {
    "kernel": jnp.stack([KERNEL, 2 * KERNEL, -KERNEL]),
    "inputs": jnp.stack([INPUTS, INPUTS, INPUTS + 1]),
  }

  def each(x):
    first, second = fn(x["kernel"], x["inputs"])
    return {"first": first, "second": second}

  found = jax.jit(lambda xs: loops.map_leading(each, xs, at_a_time))(xs)
  alone = [each(jax.tree.map(lambda leaf, i=i: leaf[i], xs)) for i in range(3)]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  # The output has 3 x 3 x 8 terms, the kernel's gradient 2 x 6 x 6.
  assert_sums_agree(found, expected, 72 + 72)


def test_map_leading_of_one():
  found = loops.map_leading(lambda x: (x, x.sum()), jnp.arange(3.0)[None])
  chex.assert_trees_all_equal(found, (jnp.arange(3.0)[None], jnp.array([3.0])))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_map_groups_joins_what_it_split(size):
  seen = []

  def group(xs):
    seen.append(xs["b"].shape)
    return xs["a"] * xs["b"][:, 0], xs["b"]

  xs = {"a": jnp.arange(6.0), "b": jnp.arange(12.0).reshape(6, 2)}
  products, same = loops.map_groups(group, xs, size)
  np.testing.assert_array_equal(products, np.arange(6.0) * np.arange(0, 12, 2))
  np.testing.assert_array_equal(same, xs["b"])
  assert seen == [(size, 2)]


def test_a_traced_function_runs_its_code_again_only_to_be_debugged():
  seen = []

  def double(x):
    seen.append(x)
    return {"twice": (2 * x, None)}

  traced = loops.Traced(double, jnp.ones(3))
  found = jax.jit(lambda x: (traced(x), jax.vmap(traced)(x[None])))(jnp.arange(3.0))
  assert len(seen) == 1
  chex.assert_trees_all_equal(found[0], double(jnp.arange(3.0)))
  chex.assert_trees_all_equal(found[1], double(jnp.arange(3.0)[None]))
  for setting in (jax.disable_jit, jax.debug_nans, jax.debug_infs):
    with setting(True):
      traced(jnp.arange(3.0))
    np.testing.assert_array_equal(seen[-1], np.arange(3.0))
    seen.append(None)


def test_what_is_repeated_is_traced_once():
  traces = []

  def objective(x, labels=None):
    traces.append(x)
    return jnp.sin(x).sum(axis=1)

  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=3, step_size=0.1, iterate="best")

  def restarts(x):
    return ddi_jax.restart_candidates(
      attack, objective, x, jnp.zeros(2), jax.random.key(0), num_restarts=3
    )

  def fresh():  # JAX keeps the trace of a function that it has seen.
    return functools.partial(objective)

  for fn, number in (
    (lambda x: loops.map_leading(fresh(), jnp.stack([x, x])), 1),
    (lambda x: loops.scan(jnp.add, jnp.zeros(2), x[None], fresh()), 1),
    (lambda x: attack(jax.random.key(0), objective, x), 2),  # Steps, the last point.
    (restarts, 2),
  ):
    traces.clear()
    jax.make_jaxpr(fn)(jnp.full((2, 4), 0.5))
    assert len(traces) == number


def loops_of(fn, *args):
  """The number of loops in a function's program, traced afresh."""
  text = str(jax.make_jaxpr(functools.partial(fn))(*args))
  return text.count("while[") + text.count("scan[")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_repeat_and_scan_unroll_ordinary_convolutions_on_a_cpu(name):
  def gained(inputs):
    return FUNCTIONS[name](KERNEL, inputs)[1]

  def repeated(inputs):
    traced = loops.Traced(gained, inputs)
    return loops.repeat(3, lambda i, x: x + i * 1e-3 * traced(x), inputs, traced)

  def scanned(inputs):
    return loops.scan(
      lambda x, gain: 0.5 * x + gain,
      inputs,
      jnp.arange(3.0),
      lambda weight: weight * 1e-3 * gained(inputs),
    )

  one_by_one = INPUTS
  for index in range(3):
    one_by_one = one_by_one + index * 1e-3 * gained(one_by_one)
  # Three outputs of 3 x 3 x 8 terms, and their gradients of 3 x 3 x 4.
  assert_sums_agree(jax.jit(repeated)(INPUTS), one_by_one, 3 * (72 + 36))
  in_order = INPUTS
  for index in range(3):
    in_order = 0.5 * in_order + index * 1e-3 * gained(INPUTS)
  assert_sums_agree(jax.jit(scanned)(INPUTS), in_order, 72 + 36)
  inside = loops_of(gained, INPUTS)  # A convolution of ours has loops of its own.
  assert (loops_of(repeated, INPUTS) > inside) == (name != "lax")
  with compiling_for("gpu"):
    assert loops_of(repeated, INPUTS) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lax", "canonical"])
def test_repeated_by_vmap_is_not_batched(name):
  conv = {"lax": jax.lax.conv_general_dilated, "canonical": conv_general_dilated}[name]
  batches = jnp.stack([INPUTS, INPUTS + 1, -INPUTS])
  seen = []

  def make(scale):
    def objective(inputs):
      seen.append(inputs.shape)
      out = conv(inputs, scale * KERNEL, (1, 1), "SAME", dimension_numbers=NUMBERS)
      return jnp.sum(jnp.sin(out), axis=(1, 2, 3))

    return objective

  @jax.jit  # The objective closes over a tracer.
  def compute(scale, batches):
    fn = loops.repeated_by_vmap(make(scale), INPUTS)
    total = jax.value_and_grad(lambda x: (fn(x) ** 2).sum())
    return jax.vmap(total)(batches)

  found = compute(0.1, batches)
  assert set(seen) == {INPUTS.shape}
  objective = make(0.1)
  alone = [jax.value_and_grad(lambda x: (objective(x) ** 2).sum())(x) for x in batches]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  # The output has 3 x 3 x 8 terms, its sum 6 x 6 x 4, the gradient 3 x 3 x 4.
  assert_sums_agree(found, expected, 72 + 144 + 36)
