"""An accuracy, with a confidence interval for it."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ddi_jax.checks import check_non_negative_int, check_number, check_positive_int

# The header of `Accuracy.cells`.
CELLS = ("accuracy", "95 % interval")


class Accuracy(NamedTuple):
  """A number of correctly classified examples, out of a total.

  Attributes:
    correct: number of correctly classified examples.
    total: number of all examples.
  """

  correct: int
  total: int

  @property
  def value(self) -> float:
    """The fraction, in [0, 1]."""
    return self.correct / self.total

  @property
  def interval(self) -> tuple[float, float]:
    """The fraction's 95 % Wilson interval."""
    return wilson_interval(self.correct, self.total)

  def __str__(self) -> str:
    low, high = self.interval
    return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"

  def cells(self, sign: str = "") -> tuple[str, str]:
    """The cells of a table below `CELLS`: accuracy with its sign, and interval."""
    low, high = self.interval
    return f"{sign}{self.value:.3f}", f"{low:.3f} to {high:.3f}"


def accuracy_of(correct: np.ndarray) -> Accuracy:
  """The accuracy from booleans `[N]`: whether each example is correct."""
  return Accuracy(int(np.sum(correct)), len(correct))


def wilson_interval(
  successes: int, total: int, *, confidence: float = 0.95
) -> tuple[float, float]:
  """The Wilson score interval of a probability.

  The interval holds the probabilities p that a two-sided score test would not reject:
  |successes / total - p| <= z sqrt(p (1 - p) / total).  Unlike the usual "plus or minus
  two standard errors" it is valid for few examples and near 0 and 1 (Wilson, 1927).

  Args:
    successes: integer in [0, total].
    total: independent trials, >= 1.
    confidence: in (0, 1).

  Returns:
    (low, high), inside [0, 1].

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> import ddi_jax
    >>> low, high = ddi_jax.wilson_interval(79, 100)
    >>> f"{low:.3f} to {high:.3f}"
    '0.700 to 0.858'
  """
  check_positive_int("total", total)
  check_non_negative_int("successes", successes)
  if successes > total:
    raise ValueError(
      f"successes must be in [0, total], got {successes!r} of {total!r}."
    )
  check_number("confidence", confidence, "(0, 1)")
  z = NormalDist().inv_cdf((1 + confidence) / 2)
  fraction, shrinkage = successes / total, z * z / total
  centre = (fraction + shrinkage / 2) / (1 + shrinkage)
  half_width = math.sqrt(shrinkage * (fraction * (1 - fraction) + shrinkage / 4)) / (
    1 + shrinkage
  )
  # Rounding would leave 1e-17, but the ends are exactly 0 and 1 here.
  low = 0.0 if successes == 0 else centre - half_width
  high = 1.0 if successes == total else centre + half_width
  return low, high
