"""On a GPU the numbers are the CPU's, and TF32 does not reach the inner products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import losses
from ddi_jax.gradients.gram import shifted_gram


def gpus():
  try:
    return jax.devices("gpu")
  except RuntimeError:
    return []


pytestmark = pytest.mark.skipif(not gpus(), reason="needs a GPU")


def on_both(fn, *arguments):
  """The results of a jitted function on the CPU and on the GPU, as NumPy arrays."""
  return [
    jax.tree.map(np.asarray, jax.jit(fn)(*jax.device_put(arguments, device)))
    for device in (jax.devices("cpu")[0], gpus()[0])
  ]


def test_inner_products_of_nearly_equal_gradients():
  """TF32 has 10 bits: differences of 1e-4 would be lost."""
  rng = np.random.default_rng(0)
  common = rng.normal(size=(1, 4096))
  gradients = (common + 1e-4 * rng.normal(size=(4, 4096))).astype(np.float32)
  cpu, gpu = on_both(lambda rows: shifted_gram({"w": rows})[0], gradients)
  for first, second in zip(cpu, gpu, strict=True):
    np.testing.assert_allclose(
      second, first, rtol=1e-4, atol=1e-5 * np.abs(first).max()
    )


def test_weights():
  rows = np.random.default_rng(1).normal(size=(6, 50)).astype(np.float32)
  cpu, gpu = on_both(lambda rows: ddi_jax.min_norm_weights(rows @ rows.T).weights, rows)
  np.testing.assert_allclose(gpu, cpu, atol=1e-2)  # The product is TF32's here.


def test_candidates_and_gradients_of_a_step():
  rng = np.random.default_rng(2)
  params = {"w": rng.normal(size=(16, 3)).astype(np.float32)}
  inputs = rng.uniform(size=(8, 16)).astype(np.float32)
  labels = rng.integers(0, 3, 8)

  def loss_fn(params, inputs, labels):
    logits = jnp.matmul(inputs, params["w"], precision="highest")
    return losses.cross_entropy(logits, labels)

  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=5, step_size=0.03)
  gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=3)
  direction = ddi_jax.danskin_direction()

  def step(params, inputs, labels):
    gradients, info = gradients_fn(params, inputs, labels, jax.random.key(0))
    return direction.update(gradients, direction.init(params), params)[0], info.losses

  (cpu, cpu_losses), (gpu, gpu_losses) = on_both(step, params, inputs, labels)
  np.testing.assert_allclose(gpu_losses, cpu_losses, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gpu["w"], cpu["w"], atol=1e-3)
