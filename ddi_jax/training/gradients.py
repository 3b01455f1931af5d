"""From the candidates to the gradients that a method makes its direction from."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections

import ddi_jax
from ddi_jax.recomputation import RecomputedGradients
from ddi_jax.restarts import LossFn
from ddi_jax.training.methods import METHODS


def method_gradients(
  config: ml_collections.ConfigDict,
  loss_fn: LossFn,
  params: chex.ArrayTree,
  candidates: jax.Array,
  labels: jax.Array,
  learning_rate: float | jax.Array,
  *,
  batch_axis: str | None = None,
) -> tuple[chex.ArrayTree | RecomputedGradients, jax.Array, Any, dict[str, jax.Array]]:
  """The gradients of `config.method`.

  Args:
    config: a checked config.
    loss_fn: (params, inputs, labels) -> (losses `[B]`, aux).
    params: of the network.
    candidates: `[K, B, ...]`.
    labels: `[B]`.
    learning_rate: the current one.
    batch_axis: the mesh axis over which the batch is split, or None.

  Returns:
    (gradients, leaves `[n, *param]` with n = K, or 1 where the method needs one only;
    losses of all candidates, `[K, B]`; aux, leaves `[K, ...]`; what else to log).  With
    `batch_axis`, losses and aux are of this device's examples, and K gradients too, but
    one gradient and the log are of the whole batch.
  """
  arrangement: dict[str, Any] = {
    "loop": config.loops.gradients,
    "has_aux": True,
    "at_a_time": config.restarts_at_a_time,
  }
  if not METHODS[config.method].proximal:
    gradients, info = ddi_jax.candidate_gradients(
      loss_fn,
      params,
      candidates,
      labels,
      gradients_at_a_time=config.gradients_at_a_time,
      **arrangement,
    )
    return gradients, info.losses, info.aux, {}

  settings = config.proximal.to_dict()
  length = settings.pop("step")
  in_training_mode = config.gradient.batch_norm == "train"
  gradient, proximal = ddi_jax.proximal_danskin_gradient(
    loss_fn,
    params,
    candidates,
    labels,
    step=learning_rate if length is None else length,
    mixes_examples=config.model.normalization == "batch" and in_training_mode,
    batch_axis=batch_axis,
    **settings,
    **arrangement,
  )
  losses, weights = proximal.losses, proximal.weights
  on_worst = jnp.take_along_axis(weights, losses.argmax(axis=0)[None], axis=0).mean()
  if batch_axis is not None:
    on_worst = jax.lax.pmean(on_worst, batch_axis)
  metrics = {
    "proximal/gap": proximal.gap,
    "proximal/predicted_decrease": proximal.predicted_decrease,
    "proximal/share_of_worst": on_worst,
    "proximal/iterations": proximal.iterations,
    "proximal/passes": proximal.passes,
  }
  gradients = jax.tree.map(lambda leaf: leaf[None], gradient)
  return gradients, losses, proximal.aux, metrics
