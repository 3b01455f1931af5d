"""The shapes in public signatures are true, and wrong ones are caught."""

import jax.numpy as jnp
import jaxtyping
import pytest
from shapes import checked, has_shapes

import ddi_jax

# What takes or returns arrays of a known shape.  The attacks and sources are protocols.
EXPECTED = {
  *("calibrate_temperature", "candidate_gradients", "gram_matrix", "min_norm_weights"),
  *("minimize_worst_case", "proximal_danskin_gradient", "recomputed_gradients"),
  "restart_candidates",
  "worst_candidate",
}


def test_public_functions_of_arrays_state_their_shapes():
  with_shapes = {name for name in ddi_jax.__all__ if has_shapes(getattr(ddi_jax, name))}
  functions = {name for name in with_shapes if name[0].islower()}
  assert functions == EXPECTED
  for name in ("cross_entropy", "margin", "dlr", "targeted_dlr", "kl_divergence"):
    assert has_shapes(getattr(ddi_jax.losses, name))


def test_tests_run_with_checked_functions():
  assert ddi_jax.gram_matrix.__wrapped__.__module__ == "ddi_jax.gradients.gram"


def test_a_result_of_another_shape_is_caught():
  def wrong(gram, slacks=None):
    return gram[0]

  wrong.__annotations__ = {
    "gram": 'Float[Array, "K K"]',
    "return": 'Float[Array, "K K"]',
  }
  with pytest.raises(jaxtyping.TypeCheckError, match="K K"):
    checked(wrong)(jnp.eye(3))


def test_arguments_that_do_not_fit_together_are_caught():
  def anything(candidates, losses):
    return candidates[0]

  anything.__annotations__ = {
    "candidates": 'Float[Array, "K B *example"]',
    "losses": 'Float[Array, "K B"]',
  }
  checked(anything)(jnp.ones((2, 3, 4)), jnp.ones((2, 3)))
  with pytest.raises(jaxtyping.TypeCheckError):
    checked(anything)(jnp.ones((2, 3, 4)), jnp.ones((3, 3)))
