"""The second part of a training step: from the candidates to their gradients."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

import ddi_jax
from ddi_jax import losses
from ddi_jax.candidates.repeated_attacks import worst_indices
from ddi_jax.gradients.per_candidate import LossFn
from ddi_jax.models.pure import Apply, mean_state
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.methods import find_method
from ddi_jax.training.step.state import TrainState


class StepGradients(NamedTuple):
  """The gradients of a step, and what is logged about them.

  Attributes:
    updates: K gradients, leaves `[K, *param]` (or `ddi_jax.RecomputedGradients`).  With
      the method `proximal`, its single direction, leaves `[*param]`.
    losses: cross entropy on each candidate, `[K, B]`.
    correct: whether the network classifies each candidate correctly, `[K, B]`.
    model_state: the network's other arrays after the step.
    metrics: further metrics to log.
  """

  updates: Any
  losses: jax.Array
  correct: jax.Array
  model_state: chex.ArrayTree
  metrics: dict[str, jax.Array]


# (state, candidates [K, B, ...], labels [B], learning rate, key) -> StepGradients
GradientsFn = Callable[..., StepGradients]


def create_gradients(
  config: ml_collections.ConfigDict, apply: Apply, mesh: Mesh | None = None
) -> GradientsFn:
  """Create the gradients of `config.method`.

  In training mode, a network draws new random numbers (Dropout) for each candidate.
  All candidates share them if `config.gradient.loss_keys = "shared"`, and with the
  method `proximal`, because it mixes the candidates.
  """
  train = config.gradient.batch_norm == "train"

  def loss_of(state: TrainState) -> LossFn:
    """(params, inputs, labels, key) -> (losses `[B]`, (correct `[B]`, model state))."""

    def loss_fn(
      params: chex.ArrayTree,
      inputs: jax.Array,
      labels: jax.Array,
      key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
      arguments = (params, state.model_state, inputs)
      _, new_state = in_training = apply(*arguments, train=True, key=key)
      # BatchNorm's statistics are updated with every method, in both modes.
      logits, _ = in_training if train else apply(*arguments, train=False)
      correct = jnp.argmax(logits, axis=-1) == labels
      return losses.cross_entropy(logits, labels), (correct, new_state)

    return loss_fn

  if find_method(config).proximal:
    return _create_proximal(config, loss_of, in_training_mode=train)
  return _create_per_candidate(config, loss_of, mesh)


def _create_per_candidate(
  config: ml_collections.ConfigDict,
  loss_of: Callable[[TrainState], LossFn],
  mesh: Mesh | None,
) -> GradientsFn:
  def at_candidates(
    candidates_and_keys: tuple[jax.Array, jax.Array | None],
    params: chex.ArrayTree,
    state: TrainState,
    labels: jax.Array,
  ) -> tuple[Any, jax.Array, Any]:
    candidates, keys = candidates_and_keys
    gradients: Any
    if config.gradients_at_a_time is not None:
      gradients, info = ddi_jax.recomputed_gradients(
        loss_of(state),
        params,
        candidates,
        labels,
        at_a_time=config.gradients_at_a_time,
        has_aux=True,
        keys=keys,
      )
    else:
      gradients, info = ddi_jax.candidate_gradients(
        loss_of(state),
        params,
        candidates,
        labels,
        has_aux=True,
        at_a_time=config.restarts_at_a_time,
        keys=keys,
      )
    return gradients, info.losses, info.aux

  def gradients_of(
    state: TrainState,
    candidates: jax.Array,
    labels: jax.Array,
    learning_rate: jax.Array,
    key: jax.Array | None = None,
  ) -> StepGradients:
    del learning_rate
    keys = None
    if key is not None and config.gradient.loss_keys == "shared":
      keys = jnp.broadcast_to(key, len(candidates))
    elif key is not None:
      keys = jax.random.split(key, len(candidates))
    arguments = ((candidates, keys), state.params, state, labels)
    if mesh is None:
      gradients, candidate_losses, aux = at_candidates(*arguments)
    else:
      split = meshes.split_restarts(at_candidates, mesh, len(candidates))
      gradients, candidate_losses, aux = split(*arguments)
      gradients = meshes.split_coordinates(gradients, mesh)
    correct, model_states = aux
    return StepGradients(
      gradients, candidate_losses, correct, mean_state(model_states), {}
    )

  return gradients_of


def _create_proximal(
  config: ml_collections.ConfigDict,
  loss_of: Callable[[TrainState], LossFn],
  *,
  in_training_mode: bool,
) -> GradientsFn:
  settings = config.proximal.to_dict()
  length = settings.pop("step")

  def gradients_of(
    state: TrainState,
    candidates: jax.Array,
    labels: jax.Array,
    learning_rate: jax.Array,
    key: jax.Array | None = None,
  ) -> StepGradients:
    # BatchNorm has running statistics.
    keeps_statistics = bool(jax.tree.leaves(state.model_state))
    direction, info = ddi_jax.proximal_danskin_gradient(
      functools.partial(loss_of(state), key=key),
      state.params,
      candidates,
      labels,
      step=learning_rate if length is None else length,
      mixes_examples=in_training_mode and keeps_statistics,
      has_aux=True,
      at_a_time=config.restarts_at_a_time,
      **settings,
    )
    worst = worst_indices(info.losses)[None]
    metrics = {
      "proximal/gap": info.gap,
      "proximal/predicted_decrease": info.predicted_decrease,
      "proximal/share_of_worst": jnp.take_along_axis(info.weights, worst, 0).mean(),
      "proximal/iterations": info.iterations,
      "proximal/passes": info.passes,
    }
    correct, model_states = info.aux
    return StepGradients(
      direction, info.losses, correct, mean_state(model_states), metrics
    )

  return gradients_of
