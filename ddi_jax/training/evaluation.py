"""Clean and robust accuracy of a model on a data set."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

import ddi_jax
from ddi_jax import losses
from ddi_jax.data import Examples, evaluation_batches
from ddi_jax.models.functional import Apply
from ddi_jax.training import mesh as meshes
from ddi_jax.training.compilation import compiler_options
from ddi_jax.training.config import step_size
from ddi_jax.training.step import THREAT_MODELS, TrainState, stream_key

EvaluateFn = Callable[..., "Evaluation | None"]


class Evaluation(NamedTuple):
  """Averages over a data set.

  Attributes:
    clean_accuracy: in [0, 1].
    robust_accuracy: fraction right on the clean input and on every restart's result.
    mean_confidence: mean largest class probability on clean inputs.
    clean_loss: mean cross entropy on clean inputs.
    robust_loss: mean of the worst restart's cross entropy.
  """

  clean_accuracy: float
  robust_accuracy: float
  mean_confidence: float
  clean_loss: float
  robust_loss: float


def describe_attack(config: ml_collections.ConfigDict) -> str:
  """The judging attack, spelt out."""
  evaluation, epsilon = config.evaluation, config.attack.epsilon
  size = step_size(evaluation, epsilon)
  return (
    f"PGD-{evaluation.steps}, {config.attack.norm} epsilon {epsilon:g}, step size "
    f"{size:g}, random start, {evaluation.restarts} restart(s), last iterate, "
    "cross entropy"
  )


def judging_attack(
  config: ml_collections.ConfigDict, batch_axis: str | tuple[str, ...] | None = None
) -> ddi_jax.Attack:
  """One restart of that attack, on a batch that is split over mesh axes if given."""
  epsilon = config.attack.epsilon
  return ddi_jax.pgd(
    THREAT_MODELS[config.attack.norm](epsilon),
    steps=config.evaluation.steps,
    # A step of length 0 is not an attack; at epsilon 0 any length projects back.
    step_size=step_size(config.evaluation, epsilon) or 1.0,
    loop=config.loops.steps,
    batch_axis=batch_axis,
  )


def create_evaluate(
  config: ml_collections.ConfigDict,
  apply: Apply,
  max_value: int,
  mesh: Mesh | None = None,
) -> EvaluateFn:
  """The evaluation of a train state under `config.evaluation`'s attack.

  With a mesh, every batch is split over all its devices.

  Returns:
    fn(state, dataset, interrupted=lambda: False) -> `Evaluation`, or None if
    `interrupted()` became true between batches.  Its randomness is a function of
    config.seed alone.
  """
  settings = config.evaluation
  attack = judging_attack(config, None if mesh is None else meshes.ALL)

  def sums_of(params, model_state, images, labels, valid, key):
    inputs = images.astype(jnp.float32) / max_value

    def logits_of(inputs):
      return apply(params, model_state, inputs, train=False)[0]

    def loss(inputs, labels):
      return losses.cross_entropy(logits_of(inputs), labels)

    candidates = ddi_jax.restart_candidates(
      attack,
      loss,
      inputs,
      labels,
      key,
      settings.restarts,
      loop=config.loops.restarts,
      at_a_time=config.restarts_at_a_time,
    )
    clean_logits = logits_of(inputs)
    logits = jax.lax.map(logits_of, candidates)
    clean_correct = jnp.argmax(clean_logits, axis=-1) == labels
    correct = jnp.argmax(logits, axis=-1) == labels
    tiled_labels = jnp.broadcast_to(labels, correct.shape)
    averages = Evaluation(
      clean_accuracy=clean_correct,
      robust_accuracy=clean_correct & correct.all(axis=0),
      mean_confidence=jax.nn.softmax(clean_logits).max(axis=-1),
      clean_loss=losses.cross_entropy(clean_logits, labels),
      robust_loss=losses.cross_entropy(logits, tiled_labels).max(axis=0),
    )
    return jax.tree.map(lambda x: jnp.sum(x, where=valid), averages)

  if mesh is not None:
    sums_of = meshes.split_sums(sums_of, mesh, num_batched=3)

  @functools.partial(jax.jit, compiler_options=compiler_options(config))
  def evaluate_batch(state, batch, index):
    key = stream_key(config.seed, "evaluation", index)
    batched = (batch[name] for name in ("image", "label", "valid"))
    return sums_of(state.params, state.model_state, *batched, key)

  def evaluate(
    state: TrainState,
    dataset: Examples,
    interrupted: Callable[[], bool] = lambda: False,
  ) -> Evaluation | None:
    sums = []
    part, num_parts = meshes.host_share(mesh, meshes.ALL, settings.batch_size)
    batches = evaluation_batches(  # All of one shape.
      dataset, settings.batch_size, shard=part, num_shards=num_parts
    )
    for index, batch in enumerate(batches):
      if interrupted():
        return None
      sums.append(
        evaluate_batch(state, meshes.to_devices(mesh, meshes.ALL, batch), index)
      )
    total = len(dataset)
    return Evaluation(
      *(float(sum(column)) / total for column in zip(*sums, strict=True))
    )

  return evaluate
