"""Clean and robust accuracy of a model on a data set."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

import ddi_jax
from ddi_jax import losses
from ddi_jax.data import Examples, evaluation_batches
from ddi_jax.models.convolution.xla_options import compiler_options
from ddi_jax.models.pure import Apply
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.model import width
from ddi_jax.training.settings.threats import (
  THREAT_MODELS,
  evaluated_radii,
  step_size,
)
from ddi_jax.training.step.state import TrainState, random_key

ValidateFn = Callable[..., "Validation | None"]


class Validation(NamedTuple):
  """Averages over a data set.

  Attributes:
    clean_accuracy: in [0, 1].
    robust_accuracy: fraction of examples that are classified correctly at the clean
      input and at every restart's result, in all threat models if there are several.
    mean_confidence: mean largest class probability on clean inputs.
    clean_loss: mean cross entropy on clean inputs.
    robust_loss: mean of the greatest cross entropy over the restarts.
    by_norm: the robust accuracy in each threat model if there are several; otherwise
      empty.
  """

  clean_accuracy: float
  robust_accuracy: float
  mean_confidence: float
  clean_loss: float
  robust_loss: float
  by_norm: Mapping[str, float] = MappingProxyType({})

  def numbers(self) -> dict[str, float]:
    """All values by name, in a flat dictionary."""
    by_norm = {f"robust_accuracy_{norm}": x for norm, x in self.by_norm.items()}
    values = self._asdict() | by_norm
    del values["by_norm"]
    return values


def describe_attack(config: ml_collections.ConfigDict) -> str:
  """A description of the validation's attack, as text."""
  evaluation, radii = config.evaluation, evaluated_radii(config)
  balls = [f"{norm} epsilon {epsilon:g}" for norm, epsilon in radii.items()]
  sizes = [f"{step_size(evaluation, epsilon):g}" for epsilon in radii.values()]
  where = balls[0] if len(balls) == 1 else f"the union of {' and '.join(balls)}"
  return (
    f"PGD-{evaluation.steps}, {where}, step size {' and '.join(sizes)}, random start, "
    f"{evaluation.restarts} restart(s), last iterate, cross entropy"
  )


def evaluation_attack(
  config: ml_collections.ConfigDict, norm: str, epsilon: float
) -> ddi_jax.Attack:
  """One restart of the validation's attack in one threat model."""
  return ddi_jax.pgd(
    THREAT_MODELS[norm](epsilon),
    steps=config.evaluation.steps,
    # `pgd` refuses a step size of 0.  At epsilon 0 any step is projected back.
    step_size=step_size(config.evaluation, epsilon) or 1.0,
  )


def create_validate(
  config: ml_collections.ConfigDict,
  apply: Apply,
  max_value: int,
  mesh: Mesh | None = None,
) -> ValidateFn:
  """Create the evaluation of a train state under `config.evaluation`'s attack.

  If there is a mesh, every batch is split over all its devices.

  Returns:
    fn(state, dataset, interrupted=lambda: False) -> `Validation`, or None if
    `interrupted()` became true between batches.  All random numbers derive from
    config.seed.
  """
  settings = config.evaluation
  attacks = {
    norm: evaluation_attack(config, norm, epsilon)
    for norm, epsilon in evaluated_radii(config).items()
  }

  def sums_of_batch(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    batch: Mapping[str, Any],
    index: Any,
  ) -> Any:
    key = random_key(config.seed, "evaluation", index)
    inputs = batch["image"].astype(jnp.float32) / max_value

    def logits_of(inputs: jax.Array) -> jax.Array:
      return apply(params, model_state, inputs, train=False)[0]

    candidates = _attacked(attacks, logits_of, inputs, batch["label"], key, config)
    averages = _by_example(
      logits_of(inputs),
      jax.lax.map(logits_of, candidates),
      batch["label"],
      tuple(attacks),
    )
    return jax.tree.map(lambda x: jnp.sum(x, where=batch["valid"]), averages)

  options = compiler_options(width(config), mesh)
  everywhere = None if mesh is None else meshes.replicated(mesh)
  compiled: Any = jax.jit(
    sums_of_batch, out_shardings=everywhere, compiler_options=options
  )
  if mesh is not None:
    compiled = meshes.InMesh(compiled, mesh)

  def validate(
    state: TrainState,
    dataset: Examples,
    interrupted: Callable[[], bool] = lambda: False,
  ) -> Validation | None:
    sums = []
    part, num_parts = meshes.host_share(mesh, meshes.ALL, settings.batch_size)
    batches = evaluation_batches(  # All batches have the same shape.
      dataset, settings.batch_size, shard=part, num_shards=num_parts
    )
    for index, batch in enumerate(batches):
      if interrupted():
        return None
      there = meshes.to_devices(mesh, meshes.ALL, batch)
      sums.append(compiled(state.params, state.model_state, there, index))
    total = len(dataset)
    sums = jax.device_get(sums)  # JAX would compile a program for each sum.
    means = jax.tree.map(lambda *parts: float(sum(parts)) / total, *sums)
    # Restore the order of the config, because JAX sorts dictionaries.
    by_norm = {norm: means.by_norm[norm] for norm in attacks if means.by_norm}
    return means._replace(by_norm=by_norm)

  return validate


def _attacked(
  attacks: Mapping[str, ddi_jax.Attack],
  logits_of: Callable[[jax.Array], jax.Array],
  inputs: jax.Array,
  labels: jax.Array,
  key: jax.Array,
  config: ml_collections.ConfigDict,
) -> jax.Array:
  """The results of all restarts, one threat model after another, `[K, B, ...]`."""

  def loss(inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return losses.cross_entropy(logits_of(inputs), labels)

  return jnp.concatenate(
    [
      ddi_jax.restart_candidates(
        attack,
        loss,
        inputs,
        labels,
        jax.random.fold_in(key, index) if index else key,
        config.evaluation.restarts,
        at_a_time=config.restarts_at_a_time,
      )
      for index, attack in enumerate(attacks.values())
    ]
  )


def _by_example(
  clean_logits: jax.Array,
  logits: jax.Array,
  labels: jax.Array,
  norms: tuple[str, ...],
) -> Any:
  """A `Validation` whose values are arrays `[B]`, one entry per example.

  Args:
    clean_logits: logits at the clean inputs, `[B, C]`.
    logits: logits at the candidates, `[K, B, C]`, one threat model after another.
    labels: `[B]`.
    norms: norms of the threat models.
  """
  clean_correct = jnp.argmax(clean_logits, axis=-1) == labels
  correct = jnp.argmax(logits, axis=-1) == labels
  tiled_labels = jnp.broadcast_to(labels, correct.shape)
  by_norm = correct.reshape(len(norms), -1, len(labels)).all(axis=1)
  of_arrays: Any = Validation
  return of_arrays(
    clean_accuracy=clean_correct,
    robust_accuracy=clean_correct & correct.all(axis=0),
    mean_confidence=jax.nn.softmax(clean_logits).max(axis=-1),
    clean_loss=losses.cross_entropy(clean_logits, labels),
    robust_loss=losses.cross_entropy(logits, tiled_labels).max(axis=0),
    by_norm=dict(zip(norms, clean_correct & by_norm, strict=True))
    if len(norms) > 1
    else {},
  )
