"""An NNX module as a pure function over parameter trees."""

from collections.abc import Callable
from typing import Any

import chex
from flax import nnx
import jax
import jax.numpy as jnp

Apply = Callable[..., tuple[jax.Array, Any]]


def functional(
  model: nnx.Module,
) -> tuple[Apply, chex.ArrayTree, chex.ArrayTree]:
  """Splits a module once into a pure function and its trees of arrays.

  Args:
    model: a module that maps inputs to logits; with `train()`/`eval()` modes if it has
      BatchNorm.

  Returns:
    (apply, params, model_state): nested dicts of arrays, and
    `apply(params, model_state, inputs, *, train) -> (logits, new model_state)`.
    `model_state` holds what is not a parameter (BatchNorm's running statistics); it
    changes only with `train=True`.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> apply, params, state = models.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> logits, _ = apply(params, state, jnp.ones((4, 3)), train=False)
    >>> logits.shape
    (4, 2)
  """
  graph, *states = nnx.split(model, nnx.Param, nnx.Not(nnx.Param))
  params, model_state = states

  def apply(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
  ) -> tuple[jax.Array, Any]:
    module = nnx.merge(graph, params, model_state)
    if train:
      module.train()
    else:
      module.eval()
    logits = module(inputs)
    return logits, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

  return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def in_bfloat16(apply: Apply) -> Apply:
  """The same function, cheaper and with a relative error of about 1e-2.

  For attacks: parameters, inputs and all that is between them are bfloat16, the logits
  float32.  On a CPU, whose elementwise operations gain nothing from it, only the
  factors of convolutions are, which saves time on processors with AMX.

  Args:
    apply: see `functional`.

  Returns:
    An `apply` of the same arguments.  The new model state is as imprecise as the rest.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> apply, params, state = models.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> cheaper = models.in_bfloat16(apply)
    >>> cheaper(params, state, jnp.ones((4, 3)), train=False)[0].dtype
    dtype('float32')
  """

  def half(tree: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

  def cheaper(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
  ) -> tuple[jax.Array, Any]:
    if jax.default_backend() == "cpu":
      with jax.default_matmul_precision("bfloat16"):
        return apply(params, model_state, inputs, train=train)
    logits, new_state = apply(half(params), model_state, half(inputs), train=train)
    return logits.astype(jnp.float32), new_state

  return cheaper
