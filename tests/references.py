"""Slow, plain solutions in float64 that the library is compared with."""

import itertools

import numpy as np
import scipy.optimize


def min_norm_by_enumeration(gram, slacks=None):
  """The least of w'Gw / 2 + slacks'w over the simplex, by trying every support.

  Returns (that times 2: the squared norm where there are no slacks, weights).  On each
  support the equality-constrained problem is solved; among feasible solutions the least
  is the minimum.
  """
  gram = np.asarray(gram, np.float64)
  size = len(gram)
  slacks = np.zeros(size) if slacks is None else np.asarray(slacks, np.float64)
  best = (np.inf, None)
  for count in range(1, size + 1):
    for support in itertools.combinations(range(size), count):
      part = gram[np.ix_(support, support)]
      system = np.block([[part, np.ones((count, 1))], [np.ones((1, count)), 0.0]])
      right = np.append(-slacks[list(support)], 1.0)
      solution = np.linalg.lstsq(system, right, rcond=None)[0]
      weights = solution[:count]
      if np.all(weights >= -1e-12) and abs(weights.sum() - 1) < 1e-9:
        full = np.zeros(size)
        full[list(support)] = np.maximum(weights, 0) / np.maximum(weights, 0).sum()
        value = full @ gram @ full + 2 * slacks @ full
        if value < best[0]:
          best = (value, full)
  return best


def proximal_by_slsqp(gradients, losses, step):
  """The least of mean_b max_k [l_bk + <g_bk, d>] + ||d||^2 / (2 step): (value, d).

  In the epigraph's form, over d and one bound per example.

  Args:
    gradients: `[K, B, n]`.
    losses: `[K, B]`.
    step: > 0.
  """
  gradients, losses = np.asarray(gradients), np.asarray(losses)
  batch, size = gradients.shape[1:]
  scale = np.linalg.norm(gradients.mean(axis=1), axis=1).max() * min(step, 1.0)

  def model(x):
    d = scale * x[:size]
    return x[size:].mean() + d @ d / (2 * step)

  def slope(x):
    return np.append(scale**2 * x[:size] / step, np.full(batch, 1 / batch))

  bounds = np.tile(np.eye(batch), (len(losses), 1))
  rows = np.concatenate([-scale * gradients.reshape(-1, size), bounds], axis=1)
  start = np.append(np.zeros(size), losses.max(axis=0))
  result = scipy.optimize.minimize(
    model,
    start,
    jac=slope,
    method="SLSQP",
    constraints={
      "type": "ineq",
      "fun": lambda x: rows @ x - losses.ravel(),
      "jac": lambda x: rows,
    },
    options={"maxiter": 1000, "ftol": 1e-14},
  )
  assert result.success, result.message
  return result.fun, scale * result.x[:size]
