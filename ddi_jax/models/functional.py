"""An NNX module as a pure function over parameter trees."""

from collections.abc import Callable
from typing import Any

import chex
from flax import nnx
import jax

Apply = Callable[..., tuple[jax.Array, Any]]


def functional(model: nnx.Module) -> tuple[Apply, chex.ArrayTree, chex.ArrayTree]:
  """Splits a module once into a pure function and its trees of arrays.

  Args:
    model: a module that maps inputs to logits; with `train()`/`eval()` modes if it has
      BatchNorm.

  Returns:
    (apply, params, model_state): nested dicts of arrays, and
    `apply(params, model_state, inputs, *, train) -> (logits, new model_state)`.
    `model_state` holds what is not a parameter (BatchNorm's running statistics); it
    changes only with `train=True`.
  """
  graph, *states = nnx.split(model, nnx.Param, nnx.Not(nnx.Param))
  params, model_state = states

  def apply(params, model_state, inputs, *, train):
    module = nnx.merge(graph, params, model_state)
    if train:
      module.train()
    else:
      module.eval()
    logits = module(inputs)
    return logits, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

  return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)
