"""Time and accuracy of the min-norm solvers, ours and others', on Gram matrices.

pip install -e '.[peers,training]'
python benchmarks/min_norm.py

The script prints Markdown tables, one per set of matrices and K.  All solvers get the
same float64 Gram matrices, even in our rows for float32.  The gap is max_k (value -
<z, g_k>) / value.  It is computed in float64 by the same code for all solvers, after
making their weights non-negative with sum 1.  "one" is a call from Python on one
matrix.  "of 1,000" is the time per matrix for 1,000 matrices: a single batched call if
the solver supports it, otherwise a Python loop (over fewer matrices if it is slow).
The solvers take turns, round after round, so that a busy machine slows all of them.

"no solver" is a jitted function that returns a solution without solving.  It shows how
long any call in jax takes, for comparison with our rows.  jax runs with
jax_cpu_enable_async_dispatch=False: by default it passes a loop to another thread,
which makes a single call from Python some 20 us longer.
"""

from collections.abc import Callable
import itertools
from pathlib import Path
import statistics
import time
from typing import NamedTuple

from absl import app, flags
import cvxpy
import jax
import jax.numpy as jnp
from machine import describe_machine
import numpy as np
from progress import progress
import qpax
import quadprog
import scipy.optimize
import torch
from torchjd.aggregation import MGDAWeighting

import ddi_jax

_SIZES = flags.DEFINE_list("sizes", ["2", "10", "64"], "K.")
_SETS = flags.DEFINE_list(
  "sets",
  ["mnist", "cifar10_small", "independent", "spread", "near_origin"],
  "Sets of matrices, from training runs (benchmarks/data) or synthetic.",
)
_BATCH = flags.DEFINE_integer("batch", 1_000, "Matrices in a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds, after a warm-up round.")
_SECONDS = flags.DEFINE_float("seconds", 0.2, "Time limit per solver and round.")
_DATA = Path(__file__).parent / "data"


class _Solver(NamedTuple):
  one: Callable[[np.ndarray], np.ndarray]  # Gram [K, K] -> weights [K]
  batch: Callable[[np.ndarray], np.ndarray] | None = None  # [N, K, K] -> [N, K]


def _matrices(name: str, size: int, count: int) -> np.ndarray:
  """Gram matrices `[count, size, size]`, float64."""
  rng = np.random.default_rng(0)
  if name in ("mnist", "cifar10_small"):
    triangles = np.load(_DATA / f"{name}.npz")["triangles"]
    full = np.zeros((len(triangles), 64, 64))
    full[:, *np.tril_indices(64)] = triangles
    full += np.tril(full, -1).transpose(0, 2, 1)
    chosen = [rng.choice(64, size, replace=False) for _ in range(count)]
    return np.stack(
      [full[i % len(full)][np.ix_(rows, rows)] for i, rows in enumerate(chosen)]
    )
  gradients = rng.normal(size=(count, size, 4 * size))
  if name == "spread":
    gradients *= np.exp(3 * rng.normal(size=(count, size, 1)))
  if name == "near_origin":
    gradients -= gradients.mean(1, keepdims=True)
    gradients[:, :, -1] = 0.01
  return gradients @ gradients.transpose(0, 2, 1)


def _jitted(solve: Callable, dtype: type, batched: Callable = jax.vmap) -> _Solver:
  one, batch = jax.jit(solve), jax.jit(batched(solve))
  return _Solver(
    lambda gram: np.asarray(one(gram.astype(dtype))),
    lambda grams: np.asarray(batch(grams.astype(dtype))),
  )


def _ours(method: str, dtype: type, batched: Callable = jax.vmap) -> _Solver:
  def solve(gram):
    return ddi_jax.min_norm_weights(gram, solver=method).weights

  return _jitted(solve, dtype, batched)


def _one_by_one(solve):
  return lambda grams: jax.lax.map(solve, grams)


def _qpax() -> _Solver:
  def solve(gram):
    size = len(gram)
    solution = qpax.solve_qp(
      gram / jnp.max(gram),
      jnp.zeros(size),
      jnp.ones((1, size)),
      jnp.ones(1),
      -jnp.eye(size),
      jnp.zeros(size),
      solver_tol=1e-10,
    )
    return solution[0]

  return _jitted(solve, jnp.float64)


def _quadprog(gram):
  size = len(gram)
  constraints = np.concatenate([np.ones((size, 1)), np.eye(size)], axis=1)
  right = np.zeros(size + 1)
  right[0] = 1
  scaled = gram / gram.max()
  try:
    return quadprog.solve_qp(scaled, np.zeros(size), constraints, right, 1)[0]
  except ValueError:  # quadprog needs a positive definite matrix.
    scaled = scaled + 1e-10 * np.eye(size)
    return quadprog.solve_qp(scaled, np.zeros(size), constraints, right, 1)[0]


def _factor(gram):
  """The factor L with L L' = gram; the matrix may be singular."""
  values, vectors = np.linalg.eigh(gram / gram.max())
  return vectors * np.sqrt(np.maximum(values, 0))


def _nnls(gram):
  size = len(gram)
  system = np.concatenate([_factor(gram).T, np.ones((1, size))])
  try:
    return scipy.optimize.nnls(system, np.append(np.zeros(size), 1.0))[0]
  except RuntimeError:  # Too many iterations.
    return None


def _slsqp(gram):
  size, scaled = len(gram), gram / gram.max()
  return scipy.optimize.minimize(
    lambda weights: weights @ scaled @ weights / 2,
    np.full(size, 1 / size),
    jac=lambda weights: scaled @ weights,
    method="SLSQP",
    bounds=[(0, 1)] * size,
    constraints={
      "type": "eq",
      "fun": lambda weights: weights.sum() - 1,
      "jac": lambda weights: np.ones(size),
    },
    options={"ftol": 1e-15, "maxiter": 1000},
  ).x


def _clarabel(size: int) -> _Solver:
  weights = cvxpy.Variable(size)
  factor = cvxpy.Parameter((size, size))
  problem = cvxpy.Problem(
    cvxpy.Minimize(cvxpy.sum_squares(factor.T @ weights)),
    [weights >= 0, cvxpy.sum(weights) == 1],
  )

  def one(gram):
    factor.value = _factor(gram)
    problem.solve(solver=cvxpy.CLARABEL)
    return weights.value

  return _Solver(one)


def _torchjd(**settings) -> _Solver:
  weighting = MGDAWeighting(**settings)
  return _Solver(lambda gram: weighting(torch.from_numpy(gram)).numpy())


def _solvers(size: int) -> dict[str, _Solver]:
  return {
    "no solver": _jitted(lambda gram: jnp.ones(size) * gram[0, 0], jnp.float64),
    "active_set": _ours("active_set", jnp.float64),
    "active_set, lax.map": _ours("active_set", jnp.float64, _one_by_one),
    "active_set, float32": _ours("active_set", jnp.float32),
    "active_set, float32, lax.map": _ours("active_set", jnp.float32, _one_by_one),
    "projected_gradient": _ours("projected_gradient", jnp.float64),
    "quadprog": _Solver(_quadprog),
    "scipy NNLS": _Solver(_nnls),
    "scipy SLSQP": _Solver(_slsqp),
    "qpax": _qpax(),
    "cvxpy, Clarabel": _clarabel(size),
    "TorchJD MGDA": _torchjd(),
    "TorchJD MGDA, 10,000 iterations": _torchjd(epsilon=1e-9, max_iters=10_000),
  }


def _gap(weights, gram):
  """The relative gap; infinite if the weights are not numbers."""
  if weights is None or not np.all(np.isfinite(weights)):
    return np.inf
  weights = np.maximum(np.asarray(weights, np.float64), 0)
  weights /= weights.sum()
  product = gram @ weights
  value = weights @ product
  return max(value - product.min(), 0) / value


def _clock(call, items) -> tuple[float, list]:
  """(Median seconds of a call, results) for as many items as the time limit allows."""
  results, seconds = [], []
  for item in items:
    start = time.perf_counter()
    results.append(call(item))
    seconds.append(time.perf_counter() - start)
    if sum(seconds) > _SECONDS.value:
      break
  return statistics.median(seconds), results


def _table(name: str, size: int) -> None:
  grams = _matrices(name, size, _BATCH.value)
  ones, batches, gaps = {}, {}, {}
  solvers = _solvers(size)
  for _ in range(_ROUNDS.value + 1):
    for solver_name, solver in solvers.items():
      seconds, results = _clock(solver.one, grams)
      if solver.batch:
        start = time.perf_counter()
        results = solver.batch(grams)
        batch_seconds = (time.perf_counter() - start) / len(grams)
      else:
        batch_seconds = seconds
      ones.setdefault(solver_name, []).append(seconds)
      batches.setdefault(solver_name, []).append(batch_seconds)
      gaps[solver_name] = [
        _gap(weights, gram) for weights, gram in zip(results, grams, strict=False)
      ]
  print(f"\n### {name}, K = {size}\n")
  print("| solver | one (us) | of 1,000 (us each) | median gap | worst gap |")
  print("|---|---|---|---|---|")
  for solver_name in solvers:
    one = 1e6 * statistics.median(ones[solver_name][1:])
    each = 1e6 * statistics.median(batches[solver_name][1:])
    print(
      f"| {solver_name} | {one:.3g} | {each:.3g} | "
      f"{np.median(gaps[solver_name]):.0e} | {np.max(gaps[solver_name]):.0e} |",
      flush=True,
    )


def main(_):
  jax.config.update("jax_enable_x64", True)
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  torch.set_num_threads(1)
  peers = ("torchjd", "torch", "qpax", "quadprog", "scipy", "cvxpy", "clarabel")
  print(f"{describe_machine('jax', *peers)}; median of {_ROUNDS.value}.")
  tables = list(itertools.product(_SETS.value, _SIZES.value))
  for name, size in progress(tables):
    _table(name, int(size))


if __name__ == "__main__":
  app.run(main)
