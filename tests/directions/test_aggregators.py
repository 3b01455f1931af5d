"""Each aggregator against the property that defines it, and against TorchJD."""

import functools

from compilations import compilations
from gradient_trees import as_matrix, as_tree, as_vector, combine, random_gradients
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ddi_jax

seeds = hypothesis.given(seed=st.integers(0, 2**32 - 1))


@functools.cache
def jitted(aggregator, **settings):
  return jax.jit(
    lambda gradients, losses=None: combine(
      getattr(ddi_jax, aggregator)(**settings), gradients, losses=losses
    )[0]
  )


def lengths(vectors):
  return np.linalg.norm(vectors, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
@seeds
def test_mgda_descends_on_all_in_proportion_to_their_size(normalization, seed):
  gradients = random_gradients(seed)
  losses = jnp.array([0.2, 1.0, 3.0, 0.5])
  direction = jitted("mgda_direction", normalization=normalization)(gradients, losses)
  matrix, z = as_matrix(gradients), as_vector(direction)
  sizes = {"l2": lengths(matrix), "loss": np.asarray(losses, float)}
  sizes["loss+"] = sizes["l2"] * sizes["loss"]
  scaled = matrix / sizes[normalization][:, None]
  assert np.all(scaled @ z >= z @ z - 1e-5 * lengths(scaled).max() ** 2)


@seeds
def test_mgda_does_not_see_the_gradients_lengths(seed):
  gradients = random_gradients(seed)
  stretch = jnp.array([1.0, 10.0, 0.1, 3.0])
  stretched = jax.tree.map(
    jax.vmap(jnp.multiply), gradients, {"a": stretch, "b": [stretch] * 2}
  )
  mgda = jitted("mgda_direction")
  np.testing.assert_allclose(
    as_vector(mgda(stretched)), as_vector(mgda(gradients)), atol=2e-3
  )


@pytest.mark.slow
def test_mgda_with_losses_that_have_no_inverse():
  with pytest.raises(ValueError, match="normalization must be one of l2, loss, loss"):
    ddi_jax.mgda_direction(normalization="l1")
  transformation = ddi_jax.mgda_direction(normalization="loss")
  with pytest.raises(ValueError, match="'loss' needs the candidates' losses"):
    transformation.update(random_gradients(0), None)
  direction = jitted("mgda_direction", normalization="loss")(
    random_gradients(0), jnp.array([1.0, 0.0, 1.0, 1.0])
  )
  assert np.all(np.isnan(as_vector(direction)))


@seeds
def test_upgrad_is_the_mean_of_projections_onto_the_dual_cone(seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  projections = []
  for gradient in matrix:
    multipliers, _ = scipy.optimize.nnls(matrix.T, -gradient)
    projections.append(gradient + multipliers @ matrix)
  z = as_vector(jitted("upgrad_direction")(gradients))
  largest = lengths(matrix).max()
  np.testing.assert_allclose(z, np.mean(projections, axis=0), atol=1e-3 * largest)
  assert np.all(matrix @ z >= -1e-4 * lengths(matrix) * largest)


@pytest.mark.parametrize("aggregator", ["upgrad_direction", "pcgrad_direction"])
def test_gradients_without_conflict_are_averaged(aggregator):
  flat = 1 + 0.3 * np.random.default_rng(0).normal(size=(4, 11))
  direction = jitted(aggregator)(as_tree(jnp.asarray(flat, jnp.float32)))
  np.testing.assert_allclose(as_vector(direction), flat.mean(0), rtol=1e-5)


@seeds
def test_dual_projection_is_the_nearest_to_the_mean_without_conflict(seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  multipliers, _ = scipy.optimize.nnls(matrix.T, -matrix.mean(0))
  expected = matrix.mean(0) + multipliers @ matrix
  z = as_vector(jitted("dual_projection_direction")(gradients))
  np.testing.assert_allclose(z, expected, atol=1e-3 * lengths(matrix).max())


@seeds
def test_aligned_mtl_is_the_mean_of_orthogonal_gradients_of_one_length(seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  left, values, right = np.linalg.svd(matrix, full_matrices=False)
  expected = values.min() * (left @ right).mean(0)
  z = as_vector(jitted("aligned_mtl_direction")(gradients))
  # The least singular value is a difference of squares as large as the greatest.
  atol = 100 * np.finfo(np.float32).eps * values.max() ** 2 / values.min()
  np.testing.assert_allclose(z, expected, atol=atol)


@pytest.mark.parametrize("aggregator", ["imtl_g_direction", "conflict_free_direction"])
@seeds
def test_cosines_with_all_gradients_are_equal(aggregator, seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  units = matrix / lengths(matrix)[:, None]
  z = as_vector(jitted(aggregator)(gradients))
  weights = np.linalg.lstsq(units.T, z)[0]
  np.testing.assert_allclose(weights @ units, z, atol=1e-3 * lengths(matrix).max())
  # A combination of them whose products with all are equal is unique up to a factor.
  products = units @ z
  rounding = 1e-3 * np.abs(weights).sum()
  np.testing.assert_allclose(products, products.mean(), atol=rounding)
  factors = {
    "imtl_g_direction": np.sum(weights / lengths(matrix)),  # The sum of the weights.
    "conflict_free_direction": np.linalg.norm(z) / np.sum(matrix @ z / (z @ z) ** 0.5),
  }
  np.testing.assert_allclose(factors[aggregator], 1, rtol=2e-2)


@seeds
def test_nash_mtl_maximises_the_product_of_descents(seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  z = as_vector(jitted("nash_mtl_direction")(gradients))
  weights = 1 / (matrix @ z)
  assert np.all(weights > 0)
  # Optimality (Navon et al., 2022): z is the combination with weights 1 / <g_k, z>.
  np.testing.assert_allclose(weights @ matrix, z, atol=2e-3 * 2)
  np.testing.assert_allclose(np.linalg.norm(z), 2, rtol=1e-3)  # sqrt(K)


@pytest.mark.slow
def test_nash_mtl_where_the_hull_holds_the_origin():
  for rows in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]):
    direction, state = combine(ddi_jax.nash_mtl_direction(), {"w": jnp.array(rows)})
    np.testing.assert_array_equal(direction["w"], [0.0, 0.0])
    assert state.norm == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "aggregator", ["aligned_mtl", "imtl_g", "conflict_free", "nash_mtl"]
)
def test_twice_the_same_gradient(aggregator):
  """The Gram matrix is singular."""
  gradients = {"w": jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])}
  make = getattr(ddi_jax, f"{aggregator}_direction")
  direction, _ = combine(make(normalize=True), gradients)
  expected = {"aligned_mtl": [2, 1], "nash_mtl": [np.sqrt(2), 1]}
  expected = np.array(expected.get(aggregator, [1, 1]), float)
  if aggregator == "aligned_mtl":  # Twice the same counts as sqrt(2) times it.
    expected[0] /= np.sqrt(2)
  expected /= np.linalg.norm(expected)
  np.testing.assert_allclose(direction["w"], expected, atol=1e-3)


def cagrad_dual(matrix, radius):
  """The least of <g_w, g_0> + radius ||g_0|| ||g_w||, by SLSQP from several starts."""
  size = len(matrix)
  mean = matrix.mean(0)

  def dual(weights):
    point = weights @ matrix
    return point @ mean + radius * np.linalg.norm(mean) * np.linalg.norm(point)

  found = [
    scipy.optimize.minimize(
      dual,
      start,
      bounds=[(0, 1)] * size,
      constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
      options={"ftol": 1e-12, "maxiter": 500},
    ).fun
    for start in (np.full(size, 1 / size), *(np.eye(size) * 0.9 + 0.1 / size))
  ]
  return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.1, 0.5, 0.9])
@hypothesis.settings(max_examples=20)
@seeds
def test_cagrad_has_the_best_worst_product_in_its_ball(radius, seed):
  gradients = random_gradients(seed)
  matrix = as_matrix(gradients)
  mean = matrix.mean(0)
  d = as_vector(jitted("cagrad_direction", radius=radius)(gradients))
  unit = np.linalg.norm(mean) * lengths(matrix).max()
  distance = np.linalg.norm(d - mean)
  assert distance <= radius * np.linalg.norm(mean) * (1 + 1e-4)
  # Weak duality: nothing in the ball exceeds the dual's value.
  assert np.min(matrix @ d) >= cagrad_dual(matrix, radius) - 1e-3 * unit


def test_cagrad_without_radius_is_the_average():
  gradients = random_gradients(1)
  average = as_matrix(gradients).mean(0)
  direction = jitted("cagrad_direction", radius=0.0)(gradients)
  np.testing.assert_allclose(as_vector(direction), average, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match=r"radius must be in \[0, 1\), got 1.0"):
    ddi_jax.cagrad_direction(radius=1.0)


@pytest.mark.slow
@seeds
def test_pcgrad_of_two_removes_the_conflict(seed):
  gradients = random_gradients(seed, size=2)
  first, second = as_matrix(gradients)
  product = min(first @ second, 0)
  expected = (
    first
    - product / (second @ second) * second
    + second
    - product / (first @ first) * first
  ) / 2
  found = as_vector(jitted("pcgrad_direction")(gradients))
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_pcgrad_against_its_definition():
  """Projections one after the other on the vectors, in the order the key gives."""
  gradients = random_gradients(3)
  matrix = as_matrix(gradients)
  matrix[1] -= 2 * matrix[0]
  matrix[3] -= matrix[2] + matrix[0]
  keys = jax.random.split(jax.random.key(0), 4)
  results = []
  for index, key in enumerate(keys):
    vector = matrix[index].copy()
    for other in np.asarray(jax.random.permutation(key, 4)):
      if other != index and vector @ matrix[other] < 0:
        vector -= (
          (vector @ matrix[other]) / np.square(matrix[other]).sum() * matrix[other]
        )
    results.append(vector)
  found = jitted("pcgrad_direction")(as_tree(jnp.asarray(matrix, jnp.float32)))
  np.testing.assert_allclose(as_vector(found), np.mean(results, axis=0), atol=1e-4)
  with pytest.raises(ValueError, match=r"update\(gradients, state, params, key=key\)"):
    ddi_jax.pcgrad_direction().update(gradients, None)


# Ours, TorchJD's with its arguments, by what ours must be multiplied.
TORCHJD = {
  "danskin_direction": ("MGDA", {"epsilon": 1e-10, "max_iters": 20_000}, 1, {}),
  "upgrad_direction": ("UPGrad", {}, 1, {}),
  "cagrad_direction": ("CAGrad", {"c": 0.4, "norm_eps": 1e-9}, 1, {"radius": 0.4}),
  "pcgrad_direction": ("PCGrad", {}, 2, {}),
  "dual_projection_direction": ("DualProj", {}, 1, {}),
  "aligned_mtl_direction": ("AlignedMTL", {}, 1, {}),
  "imtl_g_direction": ("IMTLG", {}, 1, {}),
  "conflict_free_direction": ("ConFIG", {}, 1, {}),
}


@pytest.mark.parametrize("aggregator", TORCHJD)
def test_agrees_with_torchjd(aggregator, x64):
  for needed in ("torch", "torchjd", "qpsolvers", "cvxpy"):
    pytest.importorskip(needed)
  import torch  # noqa: PLC0415
  from torchjd import aggregation as torchjd  # noqa: PLC0415

  name, settings, factor, ours = TORCHJD[aggregator]
  peer = getattr(torchjd, name)(**settings)
  transformation = getattr(ddi_jax, aggregator)(normalize=False, **ours)
  size = 2 if aggregator == "pcgrad_direction" else 4  # The order is drawn.
  for seed in range(10):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, 7)) + rng.choice([0, 0.5]) * rng.normal(size=7)
    expected = peer(torch.tensor(matrix)).numpy()
    found, _ = combine(transformation, {"w": jnp.asarray(matrix)})
    # TorchJD regularises and stops its solvers at about 1e-4.
    atol = 2e-3 * lengths(matrix).max()
    np.testing.assert_allclose(factor * found["w"], expected, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
  "make",
  [
    ddi_jax.danskin_direction,
    ddi_jax.mgda_direction,
    ddi_jax.cagrad_direction,
    ddi_jax.pcgrad_direction,
    ddi_jax.upgrad_direction,
    ddi_jax.dual_projection_direction,
    ddi_jax.aligned_mtl_direction,
    ddi_jax.imtl_g_direction,
    ddi_jax.conflict_free_direction,
    ddi_jax.nash_mtl_direction,
  ],
)
def test_outside_of_jit_the_second_update_compiles_nothing(make):
  """A solver's loop, traced anew, would be compiled anew: a second for each update."""
  gradients = random_gradients(3)
  params = jax.tree.map(lambda leaf: leaf[0], gradients)
  settings = {"losses": jnp.ones(4), "key": jax.random.key(0)}
  for _ in range(2):  # At first all that surrounds the solver is compiled as well.
    direction = make()  # The same object again.
    with compilations() as compiled:
      direction.update(gradients, direction.init(params), params, **settings)
  assert compiled == []
