"""Slow, plain solutions in float64 that the library is compared with."""

import itertools

import numpy as np


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
