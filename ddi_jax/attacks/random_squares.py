"""Square Attack, a random search on the logits alone (Andriushchenko et al., 2020)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import BestPoints, ClassifierAttack, LogitsFn
from ddi_jax.checks import check_known, check_number, check_positive_int
from ddi_jax.numerics.draws import draw_flat
from ddi_jax.reuse import reused
from ddi_jax.threat_models import Bounds, ThreatModel, check_radius

# The schedule of the paper, for 10,000 queries: the windows' area is halved at these.
_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


@reused
def square(
  threat_model: ThreatModel,
  *,
  queries: int = 5000,
  restarts: int = 1,
  p_init: float = 0.8,
  schedule_queries: int | None = None,
  bounds: Bounds = (0.0, 1.0),
) -> ClassifierAttack:
  """Square Attack: random changes of square windows, kept if the margin grows.

  It uses no gradients, and so breaks models that only hide theirs.  For l_inf a window
  is set to a random corner of the ball, with separate signs for each channel.  For l2
  and l1 a window receives the norm of another window and all norm that is still unused,
  in the shape of two bumps of opposite sign (Andriushchenko et al., 2020, algorithms 1
  to 3; for l1 Croce and Hein, 2021, section 4).

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`.
    queries: evaluations of the logits in a run, >= 1.  The search ends early once the
      whole batch is misclassified.
    restarts: number of runs, >= 1.
    p_init: fraction of the image that the first windows cover, in (0, 1].  It is halved
      at the queries of the paper's schedule, which is for a run of 10,000.
    schedule_queries: the number of queries, >= 1, to which that schedule is rescaled;
      None: `queries`.  AutoAttack passes 10,000, and so takes the first half of the
      schedule.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    A `ClassifierAttack` for images `[B, H, W, C]` or vectors `[B, n]`, whose windows
    are intervals.

  Raises:
    ValueError: for an argument outside its range; when the attack runs, for inputs of
      another rank.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.attacks.square(ddi_jax.linf(0.1), queries=100)
    >>> inputs, labels = jnp.array([[0.52, 0.48, 0.3]]), jnp.array([0])
    >>> points = attack(jax.random.key(0), lambda x: x, inputs, labels)
    >>> int(points.argmax())
    1
  """
  classifier.check_settings(threat_model, bounds)
  check_radius(threat_model, bounds, None)
  check_positive_int("queries", queries)
  check_positive_int("restarts", restarts)
  if schedule_queries is None:
    schedule_queries = queries
  check_positive_int("schedule_queries", schedule_queries)
  check_known("p_init", p_init)
  check_number("p_init", p_init, "(0, 1]")
  power = {"linf": None, "l2": 2, "l1": 1}[threat_model.norm]
  epsilon = threat_model.epsilon

  def run(
    index: Any,
    keys: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    clean_logits: jax.Array,
  ) -> BestPoints:
    del index, clean_logits
    check_radius(threat_model, bounds, math.prod(inputs.shape[1:]))
    images = _as_images(inputs)
    areas = window_areas(queries, p_init, schedule_queries)
    sides = jnp.asarray(_sides(areas, images.shape[1:], power))

    def evaluate(perturbations: jax.Array) -> BestPoints:
      # The perturbations are in the ball, and clipping to the box keeps them there.
      points = (inputs + perturbations.reshape(inputs.shape)).astype(inputs.dtype)
      points = points if bounds is None else jnp.clip(points, *bounds)
      logits = logits_fn(points)
      return classifier.by_margin(points, logits, labels)

    count = images.shape[3] + (2 if power is None else 5)
    if power is None:
      start, propose = _stripes, _square
    else:
      start = functools.partial(_tiles, power)
      propose = functools.partial(_bumps, power)

    def step(state: Any) -> tuple[jax.Array, BestPoints]:
      query, best_points = state
      perturbations = _as_images(best_points.points) - images
      query_keys = classifier.fold_in(keys, query)
      draws = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(query_keys)
      proposals = jax.vmap(propose, (0, 0, None, None))(
        draws, perturbations, sides[query], epsilon
      )
      return query + 1, _unless_broken(best_points, evaluate(proposals))

    first = jax.vmap(start, (0, 0, None))(
      classifier.fold_in(keys, 0), jnp.zeros_like(images), epsilon
    )
    _, best_points = jax.lax.while_loop(
      lambda state: (state[0] < queries) & ~jnp.all(state[1].broken),
      step,
      (jnp.int32(1), evaluate(first)),
    )
    return best_points

  return classifier.repeated(run, lambda num_classes: restarts, bounds=bounds)


def window_areas(queries: int, p_init: float, schedule_queries: int) -> np.ndarray:
  """The fraction of the image that a window covers at each query, `[queries]`."""
  index = np.arange(queries) * 10_000 // schedule_queries
  halvings = np.sum(index[:, None] > _HALVINGS, axis=1)
  return p_init / 2.0**halvings


def _as_images(inputs: jax.Array) -> jax.Array:
  if inputs.ndim == 4:
    return inputs
  if inputs.ndim == 2:
    return inputs[:, None, :, None]
  raise ValueError(
    f"square needs images [B, H, W, C] or vectors [B, n], got shape {inputs.shape}."
  )


def _sides(areas: np.ndarray, shape: tuple[int, ...], power: int | None) -> np.ndarray:
  """Height and width of the windows at each query, `[queries, 2]`."""
  height, width, _ = shape
  if height == 1:
    sides = np.stack([np.ones_like(areas), areas * width], axis=1)
  else:
    sides = np.repeat(np.sqrt(areas * height * width)[:, None], 2, axis=1)
  sides = np.round(sides).astype(np.int32)
  if power is not None:  # Room for two bumps with a middle.
    sides = np.maximum(sides, 3)
    sides += sides % 2 == 0
  return np.clip(sides, 1, [height, width])


def _unless_broken(best_points: BestPoints, candidate: BestPoints) -> BestPoints:
  """Keep misclassified points; otherwise take the better of the two."""
  best = classifier.better(best_points, candidate)
  return BestPoints(*classifier.select(best_points.broken, best_points, best))


# The functions below handle one example: perturbations [H, W, C], sides [2] (may be
# traced), draws uniform in [0, 1).  One call draws all random numbers of a query,
# because generators compile slowly.


def _signs(draws: Any, dtype: Any) -> jax.Array:
  return jnp.where(draws < 0.5, -1, 1).astype(dtype)


def _stripes(key: jax.Array, zeros: jax.Array, epsilon: Any) -> jax.Array:
  """The l_inf search's start: vertical stripes, one pixel wide."""
  draws = draw_flat(jax.random.uniform, key, zeros[:1])
  return zeros + epsilon * _signs(draws, zeros.dtype)


def _square(
  draws: Any, perturbation: jax.Array, sides: jax.Array, epsilon: Any
) -> jax.Array:
  """The l_inf search's proposal: one window set to a corner of the ball."""
  window = _Window(draws[:2], perturbation.shape, sides)
  corner = epsilon * _signs(draws[None, None, 2:], perturbation.dtype)
  return jnp.where(window.mask, corner, perturbation)


class _Window:
  """A window at a random place: its mask `[H, W, 1]`, and coordinates inside it."""

  def __init__(self, draws: Any, shape: tuple[int, ...], sides: jax.Array) -> None:
    lows = (draws * (jnp.asarray(shape[:2]) - sides + 1)).astype(int)
    self.rows = jnp.arange(shape[0])[:, None] - lows[0]
    self.columns = jnp.arange(shape[1])[None, :] - lows[1]
    inside = (self.rows >= 0) & (self.rows < sides[0])
    inside = inside & (self.columns >= 0) & (self.columns < sides[1])
    self.mask = inside[:, :, None]


def _tiles(power: int, key: jax.Array, zeros: jax.Array, epsilon: Any) -> jax.Array:
  """The l2 and l1 searches' start: a grid of about five by five pairs of bumps."""
  height, width, channels = zeros.shape
  sides = np.maximum(np.array([height, width]) // 5, 1)
  counts = np.array([height, width]) // sides
  margin = (np.array([height, width]) - counts * sides) // 2
  rows = np.arange(height)[:, None] - margin[0]
  columns = np.arange(width)[None, :] - margin[1]
  inside = (rows >= 0) & (rows < counts[0] * sides[0])
  inside = inside & (columns >= 0) & (columns < counts[1] * sides[1])
  pattern = _pair_of_bumps(
    rows % sides[0], columns % sides[1], jnp.asarray(sides), zeros.shape, True
  )
  grid = jnp.zeros((*counts, channels), zeros.dtype)
  signs = _signs(draw_flat(jax.random.uniform, key, grid), zeros.dtype)
  signs = signs[
    np.clip(rows // sides[0], 0, counts[0] - 1),
    np.clip(columns // sides[1], 0, counts[1] - 1),
  ]
  tiled = jnp.where(inside, pattern, 0)[:, :, None] * signs
  return epsilon * _unit(tiled.astype(zeros.dtype), power, axes=(0, 1, 2))


def _bumps(
  power: int, draws: Any, perturbation: jax.Array, sides: jax.Array, epsilon: Any
) -> jax.Array:
  """The l2 and l1 searches' proposal: the norm of two windows moves into one."""
  shape, dtype = perturbation.shape, perturbation.dtype
  first = _Window(draws[:2], shape, sides)
  second = _Window(draws[2:4], shape, sides)

  def mass(array: jax.Array, axes: Any = (0, 1)) -> jax.Array:
    return jnp.sum(jnp.abs(array) ** power, axis=axes, keepdims=True)

  unused = jnp.maximum(epsilon**power - mass(perturbation, (0, 1, 2)), 0)
  in_windows = mass(jnp.where(first.mask | second.mask, perturbation, 0))
  available = (in_windows + unused / shape[2]) ** (1 / power)

  along_rows = draws[4] < 0.5
  pattern = _pair_of_bumps(first.rows, first.columns, sides, shape, along_rows)
  pattern = jnp.where(first.mask, pattern[:, :, None], 0).astype(dtype)
  signs = _signs(draws[None, None, 5:], dtype)
  old = jnp.where(first.mask, perturbation, 0)
  mixed = signs * _unit(pattern, power) + _unit(old, power)
  moved = jnp.where(second.mask, 0, perturbation)
  return jnp.where(first.mask, available * _unit(mixed, power), moved)


def _pair_of_bumps(
  rows: jax.Array,
  columns: jax.Array,
  sides: jax.Array,
  shape: tuple[int, ...],
  along_rows: Any,
) -> jax.Array:
  """Two bumps of opposite sign, each half of a window (equation 2 of the paper).

  Args:
    rows: row coordinates in the window, `[H, 1]`; outside the window the result has no
      meaning.
    columns: column coordinates in the window, `[1, W]`.
    sides: height and width of the window, `[2]`.
    shape: shape of the image, `(H, W, C)`.
    along_rows: whether the halves lie above each other rather than side by side; if the
      window is one pixel high, they lie side by side.
  """
  along_rows = along_rows & (sides[0] > 1)
  length = jnp.where(along_rows, sides[0], sides[1])
  breadth = jnp.where(along_rows, sides[1], sides[0])
  half = length // 2
  # A bump is a pile of concentric squares, the k-th of height 1 / k^2.
  heights = 1 / np.arange(1.0, max(shape[:2]) + 2) ** 2
  piles = jnp.asarray(np.concatenate([[0], np.cumsum(heights)]), jnp.float32)

  def along(coordinates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sign, peak and distance from the middle of the bump, along the long side."""
    in_first = coordinates < half
    sizes = jnp.where(in_first, half, length - half)
    centers = sizes // 2
    peaks = piles[jnp.maximum(centers, breadth // 2) + 1]
    distances = jnp.abs(jnp.where(in_first, coordinates, coordinates - half) - centers)
    return jnp.where(in_first, 1, -1), peaks, distances

  def choose(by_row: jax.Array, by_column: jax.Array) -> jax.Array:
    return jnp.where(along_rows, by_row, by_column)

  # All but the last line compute on rows or columns, not on pixels.
  of_rows, of_columns = along(rows), along(columns)
  signs, peaks = (choose(of_rows[index], of_columns[index]) for index in range(2))
  row_distances = choose(of_rows[2], jnp.abs(rows - breadth // 2))
  column_distances = choose(jnp.abs(columns - breadth // 2), of_columns[2])
  last = len(piles) - 1
  row_piles = piles[jnp.minimum(row_distances, last)]
  column_piles = piles[jnp.minimum(column_distances, last)]
  return signs * jnp.maximum(peaks - jnp.maximum(row_piles, column_piles), 0)


def _unit(array: jax.Array, power: int, axes: Any = (0, 1)) -> jax.Array:
  """The array scaled to norm 1 over the axes; zeros stay zeros."""
  norms = jnp.sum(jnp.abs(array) ** power, axis=axes, keepdims=True) ** (1 / power)
  return array / jnp.where(norms > 0, norms, 1)
