"""The platform that a program is compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
from platforms import compiling_for
import pytest

from ddi_jax.models.convolution import conv_general_dilated
from ddi_jax.numerics import loops, platform


def test_without_a_word_it_is_that_of_jax():
  assert platform.target() == jax.default_backend() == "cpu"


def test_a_mesh_says_it():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("all",))
  assert platform.target(mesh) == "cpu"
  with compiling_for("gpu"):
    assert platform.target() == "gpu"
    assert platform.target(mesh) == "cpu"
    with jax.default_device("cpu"):  # Of what has no mesh.
      assert platform.target() == "gpu"


def test_the_default_device_says_it(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert platform.target() == "gpu"
  for device in ("cpu", jax.devices("cpu")[0]):
    with jax.default_device(device):
      assert platform.target() == "cpu"


def test_what_is_jitted_is_traced_for_each_platform():
  seen = []

  @jax.jit
  def fn(x):
    seen.append(platform.target())
    return x

  fn(1.0)
  for _ in range(2):
    with compiling_for("gpu"):
      fn(1.0)
  fn(1.0)
  assert seen == ["cpu", "gpu"]


@pytest.mark.parametrize(("target", "turns"), [("cpu", 3), ("tpu", 6)])
def test_a_program_is_arranged_for_its_platform(target, turns):
  def attack(images):
    return conv_general_dilated(images, jnp.ones((3, 3, 8, 8)), (1, 1), "SAME")

  images = jnp.ones((6, 2, 4, 4, 8))
  fn = jax.jit(lambda images: loops.map_leading(attack, images))
  with compiling_for(target):
    traced = fn.trace(images)
    traced.lower(lowering_platforms=(target,))
  program = str(traced.jaxpr)
  assert f"length={turns}" in program  # Two side by side on a CPU.
  assert ("loop_friendly_conv" in program) == (target == "cpu")
