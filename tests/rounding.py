"""How far rounding lets two computations of the same sums be apart."""

import jax
import numpy as np


def sum_tolerance(terms, scale, dtype=np.float32):
  """The greatest difference between two computed sums of `terms` products.

  A product or a partial sum is rounded by at most eps / 2 of its magnitude, and one sum
  takes 2 `terms` such roundings.  If no partial sum exceeds `scale`, each sum is
  within terms * eps * scale of the exact one.

  Args:
    terms: number of products.  For a sum of sums, the number of all their terms along
      one path from the inputs to the result.
    scale: greatest magnitude of a partial sum.
    dtype: of the arithmetic.
  """
  return 2 * terms * float(np.finfo(dtype).eps) * scale


def assert_sums_agree(found, expected, terms):
  """Two trees of computed sums are the same but for rounding.

  The scale is the greatest magnitude in each array.  Partial sums of products of random
  signs are about as great as the sums, and one scale for all allows for cancellation.
  """

  def compare(found, expected):
    scale = np.abs(np.asarray(expected, float)).max()
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=sum_tolerance(terms, scale)
    )

  jax.tree.map(compare, found, expected)
