"""What needs which package: the core runs without flax and the training program's."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {names!r}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
TRAINING = (
  *("flax", "grain", "orbax", "matplotlib", "sklearn", "tensorboardX", "tqdm"),
  *("ml_collections", "tensorflow_datasets", "safetensors", "PIL", "jaxtyping"),
  *("scipy", "pandas"),
)
OWN_LOOP = """
import jax, jax.numpy as jnp, optax, ddi_jax
loss_fn = lambda params, x, y: ddi_jax.losses.cross_entropy(x @ params, y)
attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=0.1)
gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=2)
optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1))
params = jnp.zeros((3, 2))
inputs, labels = jnp.full((4, 3), 0.5), jnp.zeros(4, int)
gradients, _ = gradients_fn(params, inputs, labels, jax.random.key(0))
updates, _ = optimizer.update(gradients, optimizer.init(params), params)
print(updates.shape)
"""


def run(names, code):
  return subprocess.run(
    [sys.executable, "-c", BLOCK.format(names=set(names)) + code],
    capture_output=True,
    text=True,
    check=False,
  )


def test_an_own_loop_needs_jax_optax_chex_and_numpy_only():
  result = run(TRAINING, OWN_LOOP)
  assert result.returncode == 0, result.stderr
  assert result.stdout == "(3, 2)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
  ("missing", "module"),
  [
    ("flax", "ddi_jax.models"),
    ("grain", "ddi_jax.data"),
    ("sklearn", "ddi_jax.data"),
    ("orbax", "ddi_jax.training"),
    ("matplotlib", "ddi_jax.training"),
    ("tqdm", "ddi_jax.training"),
  ],
)
def test_a_missing_package_is_named_with_its_extra(missing, module):
  result = run([missing], f"import {module}")
  message = result.stderr.strip().splitlines()[-1]
  assert f"{missing}" in message
  assert "pip install 'ddi_jax[training]'" in message
