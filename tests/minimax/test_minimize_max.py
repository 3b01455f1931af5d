"""The minimiser of a maximum: published optima, optimality conditions, hard inputs."""

import functools
import itertools
from pathlib import Path
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ddi_jax
from ddi_jax import MinimaxStatus
from ddi_jax.minimax import solver

PROBLEMS = runpy.run_path(
  str(Path(__file__).parents[2] / "benchmarks" / "minimax_problems.py")
)["PROBLEMS"]
PUBLISHED = {problem.name: problem for problem in PROBLEMS}
MOST_STEPS = "MXHILB"
FEW = ("CB2", "CB3", "DEM", "QL", "Rosen-Suzuki")
cb2 = PUBLISHED["CB2"].losses_fn
rosen_suzuki = PUBLISHED["Rosen-Suzuki"].losses_fn
DIGITS = 1e-7  # of the published optima


@functools.cache
def quadratics(num_losses, size):
  """Convex losses of unlike curvature."""
  rng = np.random.default_rng(0)
  roots = rng.normal(size=(num_losses, size, size)) / np.sqrt(size)
  centres = rng.normal(size=(num_losses, size))
  offsets = rng.normal(size=num_losses)

  def losses_fn(x):
    images = jnp.einsum("kij,kj->ki", roots, x[None] - centres)
    return jnp.sum(images**2, axis=1) + offsets

  return losses_fn


@functools.cache
def affine_quadratics(num_losses, size):
  """Jitted: `minimize_max` of `quadratics` in z, at matrix @ z + shift."""
  losses_fn = quadratics(num_losses, size)

  def minimize(start, matrix, shift, max_steps=500):
    return ddi_jax.minimize_max(
      lambda z: losses_fn(matrix @ z + shift), start, max_steps=max_steps
    )

  return jax.jit(minimize, static_argnames="max_steps")


def epigraph_minimum(losses_fn, start):
  """By scipy's SLSQP: min t subject to t >= losses."""
  losses, jacobian = jax.jit(losses_fn), jax.jit(jax.jacfwd(losses_fn))

  def slack_gradient(z):
    gradients = np.asarray(jacobian(z[:-1]))
    return np.hstack([-gradients, np.ones((len(gradients), 1))])

  result = scipy.optimize.minimize(
    lambda z: z[-1],
    np.append(start, np.max(losses(start))),
    jac=lambda z: np.eye(len(z))[-1],
    method="SLSQP",
    constraints={
      "type": "ineq",
      "fun": lambda z: z[-1] - np.asarray(losses(z[:-1])),
      "jac": slack_gradient,
    },
    options={"maxiter": 500, "ftol": 1e-13},
  )
  return float(np.max(losses(result.x[:-1])))


def assert_optimal(losses_fn, start, solution, tolerance=1e-5):
  """The conditions of Karush, Kuhn and Tucker, recomputed from the parameters."""
  losses = np.asarray(jax.jit(losses_fn)(solution.params))
  gradients_of = jax.jit(jax.jacfwd(losses_fn))
  gradients = np.asarray(gradients_of(solution.params))
  weights = np.asarray(solution.weights)
  eps = float(jnp.finfo(losses.dtype).eps)
  np.testing.assert_allclose(solution.losses, losses, rtol=100 * eps, atol=100 * eps)
  assert solution.value == solution.losses.max()
  assert weights.min() >= 0
  np.testing.assert_allclose(weights.sum(), 1, rtol=100 * eps)
  assert weights @ (losses.max() - losses) <= tolerance * max(1, np.abs(losses).max())
  norms = np.linalg.norm(gradients_of(jnp.asarray(start)), axis=1)
  assert np.linalg.norm(weights @ gradients) <= tolerance * norms.max()


@pytest.mark.slow
@pytest.mark.parametrize("memory", [30, 0])
@pytest.mark.parametrize("name", FEW)
def test_published_optima(x64, name, memory):
  _, start, losses_fn, optimum = PUBLISHED[name]
  solution = ddi_jax.minimize_max(losses_fn, jnp.array(start), memory=memory)
  assert solution.status == MinimaxStatus.CONVERGED
  assert solution.converged
  np.testing.assert_allclose(solution.value, optimum, rtol=DIGITS)
  assert_optimal(losses_fn, start, solution)
  assert solution.steps <= 15
  assert solution.evaluations <= 25


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {*FEW, MOST_STEPS}))
def test_the_other_published_optima(x64, name):
  assert check_optimum(PUBLISHED[name]).status == MinimaxStatus.CONVERGED


@pytest.fixture
def optimized():
  """XLA's optimisations, for a test that runs for longer than it compiles."""
  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, False)
  yield
  jax.config.update(name, before)


@pytest.mark.slow
def test_the_published_optimum_after_the_most_steps(x64, optimized):
  solution = check_optimum(PUBLISHED[MOST_STEPS])
  # Rounding may hide that the losses can still decrease.
  assert solution.status in (MinimaxStatus.CONVERGED, MinimaxStatus.NO_DESCENT)


def check_optimum(problem):
  with jax.numpy_rank_promotion("allow"):  # The benchmarks' code may promote.
    solution = ddi_jax.minimize_max(problem.losses_fn, jnp.array(problem.start))
  np.testing.assert_allclose(solution.value, problem.optimum, rtol=DIGITS, atol=1e-9)
  return solution


@pytest.mark.slow
@pytest.mark.parametrize(("num_losses", "size"), [(1, 4), (2, 6), (5, 3), (20, 6)])
def test_convex_quadratics_as_scipy_solves_them(x64, num_losses, size):
  """More losses than parameters too."""
  losses_fn = quadratics(num_losses, size)
  start = np.ones(size)
  solution = ddi_jax.minimize_max(losses_fn, start)
  assert solution.converged
  expected = epigraph_minimum(losses_fn, start)
  np.testing.assert_allclose(solution.value, expected, rtol=1e-8, atol=1e-8)
  assert_optimal(losses_fn, start, solution)


def test_one_loss_is_ordinary_minimisation(x64):
  def rosenbrock(x):
    return (1 + 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)[None]

  solution = ddi_jax.minimize_max(rosenbrock, jnp.array([-1.2, 1.0]))
  assert solution.converged
  np.testing.assert_allclose(solution.params, [1, 1], atol=1e-4)
  assert solution.evaluations < 80
  np.testing.assert_array_equal(solution.weights, [1])


@pytest.mark.slow
def test_the_order_of_the_losses_does_not_matter(x64):
  losses_fn = quadratics(5, 3)
  order = jnp.array([3, 0, 4, 1, 2])
  plain = ddi_jax.minimize_max(losses_fn, jnp.ones(3))
  permuted = ddi_jax.minimize_max(lambda x: losses_fn(x)[order], jnp.ones(3))
  np.testing.assert_allclose(permuted.params, plain.params, rtol=1e-7)
  np.testing.assert_allclose(permuted.weights, plain.weights[order], atol=1e-5)


@pytest.mark.slow
def test_the_scale_does_not_matter(x64):
  _, start, losses_fn, optimum = PUBLISHED["Rosen-Suzuki"]

  @jax.jit
  def minimize(losses_scale, params_scale):
    return ddi_jax.minimize_max(
      lambda x: losses_scale * losses_fn(x / params_scale),
      params_scale * jnp.array(start),
    )

  for losses_scale, params_scale in itertools.product([1e-8, 1e8], [1e-4, 1e4]):
    solution = minimize(losses_scale, params_scale)
    assert solution.converged
    np.testing.assert_allclose(solution.value / losses_scale, optimum, rtol=DIGITS)
    assert solution.evaluations < 60


@pytest.mark.slow
def test_parameters_of_unlike_scales(x64):
  """A curvature of 1e-8 of the others' is found before the gap is believed."""
  minimize = affine_quadratics(2, 3)
  scales = jnp.diag(jnp.array([1.0, 1.0, 1e-4]))
  expected = minimize(jnp.ones(3), jnp.eye(3), jnp.zeros(3))
  solution = minimize(jnp.ones(3), scales, jnp.zeros(3))
  assert solution.converged
  np.testing.assert_allclose(solution.value, expected.value, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_rotation_of_the_parameters_does_not_matter(x64, scale):
  """Nor their unit: every step is the same step."""
  minimize = affine_quadratics(5, 4)
  random = np.random.default_rng(1).normal(size=(4, 4))
  matrix = scale * jnp.asarray(np.linalg.qr(random)[0])
  plain = minimize(jnp.ones(4), jnp.eye(4), jnp.zeros(4), max_steps=6)
  start = jnp.linalg.solve(matrix, jnp.ones(4))
  changed = minimize(start, matrix, jnp.zeros(4), max_steps=6)
  assert not plain.converged
  assert changed.evaluations == plain.evaluations
  np.testing.assert_allclose(changed.value, plain.value, rtol=1e-9)
  np.testing.assert_allclose(matrix @ changed.params, plain.params, atol=1e-7)


@pytest.mark.slow
def test_any_affine_change_of_the_parameters_ends_at_the_same_minimum(x64):
  minimize = affine_quadratics(5, 4)
  random = np.random.default_rng(1).normal(size=(2, 4, 4))
  left, right = (np.linalg.qr(part)[0] for part in random)
  matrix = jnp.asarray(left @ np.diag([1.0, 5.0, 20.0, 100.0]) @ right)
  shift = jnp.array([3.0, -1.0, 0.5, 2.0])
  plain = minimize(jnp.ones(4), jnp.eye(4), jnp.zeros(4))
  changed = minimize(jnp.linalg.solve(matrix, 1 - shift), matrix, shift)
  assert changed.converged
  np.testing.assert_allclose(changed.value, plain.value, rtol=1e-8)


@pytest.mark.slow
def test_a_thousand_losses(x64):
  """More than have weight at the minimum."""
  nodes = np.linspace(-1, 1, 500)
  basis = jnp.asarray(np.polynomial.chebyshev.chebvander(nodes, 8))

  def losses_fn(coefficients):
    error = basis @ coefficients - jnp.abs(jnp.asarray(nodes))
    return jnp.concatenate([error, -error])

  solution = ddi_jax.minimize_max(losses_fn, jnp.zeros(9))
  assert solution.converged
  # The linear program: the least t with error <= t and -error <= t.
  columns = np.hstack([np.vstack([basis, -basis]), -np.ones((1000, 1))])
  target = np.abs(nodes)
  best = scipy.optimize.linprog(
    np.eye(10)[-1],
    A_ub=columns,
    b_ub=np.concatenate([target, -target]),
    bounds=(None, None),
  )
  np.testing.assert_allclose(solution.value, best.fun, rtol=1e-8)


@pytest.mark.slow
def test_every_step_is_told_and_the_best_point_is_returned_if_values_rise(x64):
  _, start, losses_fn, optimum = PUBLISHED["Mifflin2"]
  told = []
  solution = ddi_jax.minimize_max(losses_fn, jnp.array(start), callback=told.append)
  jax.effects_barrier()
  assert [int(progress.steps) for progress in told] == list(range(1, len(told) + 1))
  assert len(told) == solution.steps
  # The fixture's double precision does not reach the callback's thread.
  np.testing.assert_allclose(told[-1].value, solution.value, rtol=1e-6)
  np.testing.assert_allclose(told[-1].gap, solution.gap, rtol=1e-6)
  assert told[-1].evaluations == solution.evaluations
  values = [float(losses_fn(jnp.array(start)).max())]
  values += [float(progress.value) for progress in told]
  rises = [i for i in range(1, len(values)) if values[i] > values[i - 1] + 1e-3]
  assert rises
  for index in range(1, len(values)):
    assert values[index] <= max(values[max(0, index - 6) : index])
  stopped = ddi_jax.minimize_max(losses_fn, jnp.array(start), max_steps=rises[0])
  np.testing.assert_allclose(stopped.value, min(values[: rises[0]]), rtol=1e-6)
  assert stopped.value == losses_fn(stopped.params).max()
  assert stopped.value >= optimum


@pytest.mark.slow
def test_vmap_is_a_loop(x64):
  """Over starts and over the problem's data."""

  @jax.jit
  def solve(start, shift):
    return ddi_jax.minimize_max(lambda x: cb2(x) + shift, start)

  starts = jnp.array([[1.0, -0.1], [3.0, 2.0], [-1.0, 0.5]])
  shifts = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 0.1]])
  together = jax.vmap(solve)(starts, shifts)
  for index, (start, shift) in enumerate(zip(starts, shifts, strict=True)):
    alone = solve(start, shift)
    np.testing.assert_allclose(together.value[index], alone.value, rtol=1e-9)
    np.testing.assert_allclose(together.params[index], alone.params, atol=1e-5)
    assert together.status[index] == alone.status


@pytest.mark.slow
def test_params_are_any_tree_of_single_precision():
  def losses_fn(params):
    x = jnp.concatenate([params["a"].reshape(-1), params["b"][0]])
    return rosen_suzuki(x)

  params = {"a": jnp.zeros((1, 2)), "b": [jnp.zeros(2)]}
  solution = ddi_jax.minimize_max(losses_fn, params)
  assert solution.converged
  assert jax.tree.structure(solution.params) == jax.tree.structure(params)
  assert solution.params["a"].shape == (1, 2)
  np.testing.assert_allclose(solution.value, -44, rtol=1e-5)


@pytest.mark.slow
def test_duplicates_and_losses_far_below_change_nothing(x64):
  plain = ddi_jax.minimize_max(cb2, jnp.array([1.0, -0.1]))

  def more_losses(x):
    losses = cb2(x)
    return jnp.concatenate([losses, losses, losses[:1] - 1e6])

  solution = ddi_jax.minimize_max(more_losses, jnp.array([1.0, -0.1]))
  assert solution.converged
  np.testing.assert_allclose(solution.value, plain.value, rtol=1e-9)
  assert solution.weights[-1] == 0


@pytest.mark.slow
def test_an_optimum_without_ties(x64):
  """One loss is the greatest around it."""
  solution = ddi_jax.minimize_max(
    lambda x: jnp.stack([jnp.sum((x - 1) ** 4) + 5, jnp.sum(x)]), jnp.zeros(3)
  )
  assert solution.converged
  np.testing.assert_allclose(solution.value, 5, rtol=1e-8)
  np.testing.assert_allclose(solution.weights, [1, 0], atol=1e-6)


@pytest.mark.slow
def test_a_start_at_the_optimum_ends_there(x64):
  def losses_fn(x):
    return jnp.stack([x[0] + 1, 1 - x[0]])

  solution = ddi_jax.minimize_max(losses_fn, jnp.zeros(1))
  assert solution.value == 1
  assert solution.gap <= 1e-15
  np.testing.assert_allclose(solution.weights, [0.5, 0.5])
  assert solution.evaluations < 70  # It looks for a step, and finds none.


@pytest.mark.slow
def test_the_value_never_rises_and_the_number_of_steps_compiles_nothing(x64):
  _, start, losses_fn, _ = PUBLISHED["Rosen-Suzuki"]
  programs = set()
  for max_steps in (1, 2, np.int64(5)):
    solution = ddi_jax.minimize_max(losses_fn, jnp.array(start), max_steps=max_steps)
    assert solution.status == MinimaxStatus.MAX_STEPS
    assert not solution.converged
    assert solution.steps == max_steps
    assert solution.value < losses_fn(jnp.array(start)).max()
    assert solution.gap > 0
    programs.add(solver._minimize._cache_size())
  assert len(programs) == 1


@pytest.mark.slow
def test_points_without_a_finite_loss_are_backed_away_from(x64):
  """The first step leads out of the domain of the logarithm."""

  def losses_fn(x):
    return jnp.stack([-jnp.log(x[0]) + 3 * x[0], x[0] - jnp.log(2 - x[0])])

  solution = ddi_jax.minimize_max(losses_fn, jnp.array([1.9]))
  assert solution.converged
  expected = scipy.optimize.minimize_scalar(
    lambda x: float(losses_fn(jnp.array([x])).max()),
    bounds=(0.01, 1.99),
    method="bounded",
    options={"xatol": 1e-10},
  )
  np.testing.assert_allclose(solution.value, expected.fun, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_start_that_is_not_finite_is_an_answer(bad):
  solution = ddi_jax.minimize_max(cb2, jnp.array([bad, 0.0]))
  assert solution.status == MinimaxStatus.NOT_FINITE
  assert not solution.converged
  assert solution.steps == 0


@pytest.mark.slow
def test_a_kink_in_a_loss_ends_the_run():
  """Where no step descends, for a gradient that is not one."""
  solution = ddi_jax.minimize_max(jnp.abs, jnp.array([1e-3]))
  assert solution.value < 1e-3
  assert solution.status in (MinimaxStatus.NO_DESCENT, MinimaxStatus.CONVERGED)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("losses_fn", "params", "settings", "message"),
  [
    (cb2, jnp.ones(2), {"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
    (cb2, jnp.ones(2), {"memory": -1}, "memory must be an integer >= 0, got -1"),
    (cb2, jnp.ones(2), {"tolerance": 0.0}, "tolerance must be a finite number > 0"),
    (cb2, jnp.ones(2), {"max_trials": 1.5}, "max_trials must be an integer >= 1"),
    (cb2, jnp.ones(2, int), {}, "params must be float32 or float64, got int32"),
    (cb2, {"w": jnp.ones(2, complex)}, {}, r"params\['w'\] must be .* complex64"),
    (cb2, jnp.ones(0), {}, "params must hold at least one number"),
    (jnp.sum, jnp.ones(2), {}, r"losses \[K\] with K >= 1, got shape \(\)"),
    (lambda x: x[:0], jnp.ones(2), {}, r"K >= 1, got shape \(0,\)"),
    (lambda x: [x[0], x[1]], jnp.ones(2), {}, "one array, got list"),
    (lambda x: x.astype(int), jnp.ones(2), {}, "floating-point losses, got int32"),
  ],
)
def test_bad_input(losses_fn, params, settings, message):
  with pytest.raises(ValueError, match=message):
    ddi_jax.minimize_max(losses_fn, params, **settings)
