"""Clean and robust accuracy of a model on a data set."""

from collections.abc import Callable, Mapping
import functools
from types import MappingProxyType
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
from ddi_jax.training.step import TrainState, stream_key
from ddi_jax.training.threats import THREAT_MODELS, judged_radii

EvaluateFn = Callable[..., "Evaluation | None"]


class Evaluation(NamedTuple):
  """Averages over a data set.

  Attributes:
    clean_accuracy: in [0, 1].
    robust_accuracy: fraction right on the clean input and on every restart's result,
      with several threat models in each of them.
    mean_confidence: mean largest class probability on clean inputs.
    clean_loss: mean cross entropy on clean inputs.
    robust_loss: mean of the worst restart's cross entropy.
    by_norm: the robust accuracy in each of several threat models; empty with one.
  """

  clean_accuracy: float
  robust_accuracy: float
  mean_confidence: float
  clean_loss: float
  robust_loss: float
  by_norm: Mapping[str, float] = MappingProxyType({})

  def numbers(self) -> dict[str, float]:
    """All of it by name, without a nested level."""
    by_norm = {f"robust_accuracy_{norm}": x for norm, x in self.by_norm.items()}
    values = self._asdict() | by_norm
    del values["by_norm"]
    return values


def describe_attack(config: ml_collections.ConfigDict) -> str:
  """The judging attack, spelt out."""
  evaluation, radii = config.evaluation, judged_radii(config)
  balls = [f"{norm} epsilon {epsilon:g}" for norm, epsilon in radii.items()]
  sizes = [f"{step_size(evaluation, epsilon):g}" for epsilon in radii.values()]
  where = balls[0] if len(balls) == 1 else f"the union of {' and '.join(balls)}"
  return (
    f"PGD-{evaluation.steps}, {where}, step size {' and '.join(sizes)}, random start, "
    f"{evaluation.restarts} restart(s), last iterate, cross entropy"
  )


def judging_attack(
  config: ml_collections.ConfigDict,
  norm: str,
  epsilon: float,
  batch_axis: str | tuple[str, ...] | None = None,
) -> ddi_jax.Attack:
  """One restart of that attack in one of its threat models.

  The batch may be split over mesh axes.
  """
  return ddi_jax.pgd(
    THREAT_MODELS[norm](epsilon),
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
  batch_axis = None if mesh is None else meshes.ALL
  attacks = {
    norm: judging_attack(config, norm, epsilon, batch_axis)
    for norm, epsilon in judged_radii(config).items()
  }

  def sums_of(params, model_state, images, labels, valid, key):
    inputs = images.astype(jnp.float32) / max_value

    def logits_of(inputs):
      return apply(params, model_state, inputs, train=False)[0]

    def loss(inputs, labels):
      return losses.cross_entropy(logits_of(inputs), labels)

    candidates = [
      ddi_jax.restart_candidates(
        attack,
        loss,
        inputs,
        labels,
        jax.random.fold_in(key, index) if index else key,
        settings.restarts,
        loop=config.loops.restarts,
        at_a_time=config.restarts_at_a_time,
      )
      for index, attack in enumerate(attacks.values())
    ]
    clean_logits = logits_of(inputs)
    logits = jax.lax.map(logits_of, jnp.concatenate(candidates))
    clean_correct = jnp.argmax(clean_logits, axis=-1) == labels
    correct = jnp.argmax(logits, axis=-1) == labels
    tiled_labels = jnp.broadcast_to(labels, correct.shape)
    by_norm = correct.reshape(len(attacks), settings.restarts, -1).all(axis=1)
    by_norm = dict(zip(attacks, clean_correct & by_norm, strict=True))
    averages = Evaluation(
      clean_accuracy=clean_correct,
      robust_accuracy=clean_correct & correct.all(axis=0),
      mean_confidence=jax.nn.softmax(clean_logits).max(axis=-1),
      clean_loss=losses.cross_entropy(clean_logits, labels),
      robust_loss=losses.cross_entropy(logits, tiled_labels).max(axis=0),
      by_norm=by_norm if len(attacks) > 1 else {},
    )
    return jax.tree.map(lambda x: jnp.sum(x, where=valid), averages)

  if mesh is not None:
    sums_of = meshes.split_sums(sums_of, mesh, num_batched=3)

  @functools.partial(jax.jit, compiler_options=compiler_options(config))
  def evaluate_batch(params, model_state, batch, index):
    key = stream_key(config.seed, "evaluation", index)
    batched = (batch[name] for name in ("image", "label", "valid"))
    return sums_of(params, model_state, *batched, key)

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
      there = meshes.to_devices(mesh, meshes.ALL, batch)
      sums.append(evaluate_batch(state.params, state.model_state, there, index))
    total = len(dataset)
    means = jax.tree.map(lambda *parts: float(sum(parts)) / total, *sums)
    # In the order of the config, which JAX does not keep.
    by_norm = {norm: means.by_norm[norm] for norm in attacks if means.by_norm}
    return means._replace(by_norm=by_norm)

  return evaluate
