"""The choice of loop form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax import loops
from ddi_jax.models.convolution import conv_general_dilated

INPUTS = jnp.ones((2, 6, 6, 8))
KERNEL = jnp.ones((3, 3, 8, 4))
NUMBERS = ("NHWC", "HWIO", "NHWC")


def gradient_through(conv):
  def loss(kernel, inputs):
    return jnp.sum(conv(inputs, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS) ** 2)

  return jax.grad(loss, argnums=(0, 1))


def nested(fn):
  """The same below jit, a loop and a branch, where it must be found too."""

  def wrapped(*args):
    def body(_, carry):
      return jax.lax.cond(True, jax.jit(fn), fn, *args), carry[1]

    return jax.lax.fori_loop(0, 2, body, (fn(*args), 0))

  return wrapped


@pytest.mark.parametrize("wrap", [lambda fn: fn, nested])
def test_auto_unrolls_only_ordinary_convolutions_on_a_cpu(wrap, monkeypatch):
  ordinary = wrap(gradient_through(jax.lax.conv_general_dilated))
  friendly = wrap(gradient_through(conv_general_dilated))
  dense = wrap(lambda kernel, inputs: inputs @ kernel[0, 0])
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert loops.resolve("auto", ordinary, KERNEL, INPUTS) == "unroll"
  assert loops.resolve("auto", friendly, KERNEL, INPUTS) == "loop"
  assert loops.resolve("auto", dense, KERNEL, INPUTS) == "vmap"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert loops.resolve("auto", ordinary, KERNEL, INPUTS) == "loop"


def test_a_stated_form_is_kept():
  assert loops.resolve("unroll", jnp.sin, 1.0) == "unroll"


@pytest.mark.parametrize("form", ["unroll", "loop", "vmap"])
def test_map_leading(form):
  xs = {"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}
  found = loops.map_leading(lambda x: (x["a"] * x["b"], x["a"]), xs, form)
  np.testing.assert_array_equal(found[0], np.arange(3.0)[:, None] * np.ones((3, 2)))
  np.testing.assert_array_equal(found[1], np.arange(3.0))
