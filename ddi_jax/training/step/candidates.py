"""The first part of a training step: from the batch to its candidates."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

import ddi_jax
from ddi_jax import losses
from ddi_jax.candidates import restart_candidates, worst_candidate
from ddi_jax.models.pure import Apply, in_bfloat16
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.methods import find_method
from ddi_jax.training.settings.sources import (
  attack_threat_model,
  create_source,
  pgd_settings,
  used_fields,
)
from ddi_jax.training.step import warm_memory
from ddi_jax.training.step.state import TrainState


class Candidates(NamedTuple):
  """The adversarial copies of a batch.

  Attributes:
    points: `[K, B, ...]`.
    epsilon: the radius of `config.attack` at this step; None if nothing uses it.
    memory: the memory after this step, see training/step/warm_memory.py.
  """

  points: jax.Array
  epsilon: jax.Array | None
  memory: chex.ArrayTree


# (state, inputs [B, ...], labels [B], indices [B], attack key, augmentation key)
CandidatesFn = Callable[..., Candidates]


# The network under attack:
# (state, key, inputs [B, ...], labels [B]) -> losses [B] or logits [B, C].
_NetworkFn = Callable[..., jax.Array]


def create_candidates(
  config: ml_collections.ConfigDict,
  apply: Apply,
  *,
  steps_per_epoch: int,
  mesh: Mesh | None = None,
) -> CandidatesFn:
  """Create the candidates of `config.method`.

  They are restarts of one attack, or come from `config.sources`.  If the network is in
  training mode during the attack, its random numbers (Dropout) are the same in all
  steps of the attack.
  """
  method = find_method(config)
  attacked_apply = in_bfloat16(apply) if config.attack.dtype == "bfloat16" else apply
  in_training_mode = config.attack.batch_norm == "train"
  uses_radius = not config.sources or "attack.epsilon" in used_fields(config)
  warmup_steps = max(1, round(config.attack.warmup_epochs * steps_per_epoch))

  def logits_of(state: TrainState, key: jax.Array, inputs: jax.Array) -> jax.Array:
    arguments = (state.params, state.model_state, inputs)
    mode = {"train": True, "key": key} if in_training_mode else {"train": False}
    return attacked_apply(*arguments, **mode)[0]

  def loss(
    state: TrainState, key: jax.Array, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    return losses.cross_entropy(logits_of(state, key, inputs), labels)

  from_restarts = _create_restarts(config, loss, mesh)
  from_sources = _create_sources(config, logits_of, steps_per_epoch)

  def candidates_of(
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
    indices: jax.Array | None,
    key: jax.Array,
    augment_key: jax.Array,
  ) -> Candidates:
    fraction = jnp.minimum(1.0, (state.step + 1) / warmup_steps)
    memory = state.memory
    # The key for the network's random numbers.  It differs from all restarts' keys,
    # because their number is smaller than this index.
    draw = jax.random.fold_in(key, 2**31 - 1)
    if not method.attacked:
      points = inputs[None]
    elif config.sources:
      keys = (key, augment_key, draw)
      points, memory = from_sources(state, inputs, labels, indices, keys, fraction)
    else:
      points = from_restarts(state, draw, inputs, labels, key, fraction)
    if method.select_worst:
      point_losses = jax.lax.map(lambda x: loss(state, draw, x, labels), points)
      points = worst_candidate(points, point_losses)[None]
    epsilon = fraction * config.attack.epsilon if uses_radius else None
    return Candidates(points, epsilon, memory)

  return candidates_of


def _create_restarts(
  config: ml_collections.ConfigDict, loss: _NetworkFn, mesh: Mesh | None
) -> Callable[..., jax.Array]:
  """(state, draw, inputs, labels, key, epsilon fraction) -> restarts of one attack."""
  number = config.num_restarts if find_method(config).restarts else 1

  def from_restarts(
    state: TrainState,
    draw: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    epsilon_fraction: jax.Array,
  ) -> jax.Array:
    attack = ddi_jax.pgd(
      attack_threat_model(config, epsilon_fraction),
      random_start=config.attack.random_start,
      **pgd_settings(config, epsilon_fraction),
    )

    def attack_from(
      keys: jax.Array,
      state: TrainState,
      draw: jax.Array,
      inputs: jax.Array,
      labels: jax.Array,
    ) -> jax.Array:
      return restart_candidates(
        attack,
        functools.partial(loss, state, draw),
        inputs,
        labels,
        keys,
        len(keys),
        at_a_time=config.restarts_at_a_time,
      )

    split = attack_from if mesh is None else meshes.split_restarts(attack_from, mesh)
    return split(jax.random.split(key, number), state, draw, inputs, labels)

  return from_restarts


def _create_sources(
  config: ml_collections.ConfigDict, logits_of: _NetworkFn, steps_per_epoch: int
) -> Callable[..., tuple[jax.Array, chex.ArrayTree]]:
  """(state, inputs, labels, indices, keys, fraction) -> (candidates, memory)."""

  def from_sources(
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
    indices: jax.Array | None,
    keys: tuple[jax.Array, jax.Array, jax.Array],
    epsilon_fraction: jax.Array,
  ) -> tuple[jax.Array, chex.ArrayTree]:
    key, augment_key, draw = keys
    epoch = state.step // steps_per_epoch
    recalled = warm_memory.recall(config, state.memory, indices, epoch, augment_key)
    source = create_source(config, epsilon_fraction, recalled)
    points = source(key, functools.partial(logits_of, state, draw), inputs, labels)
    memory = warm_memory.remember(
      config, state.memory, indices, epoch, augment_key, points - inputs[None]
    )
    return points, memory

  return from_sources
