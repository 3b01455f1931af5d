"""One training step, of every method, as a pure jitted function."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import optax

import ddi_jax
from ddi_jax import losses
from ddi_jax.data import pad_crop_flip
from ddi_jax.models.functional import Apply, in_bfloat16
from ddi_jax.training import mesh as meshes
from ddi_jax.training import warm
from ddi_jax.training.compilation import compiler_options
from ddi_jax.training.config import step_size
from ddi_jax.training.gradients import method_gradients
from ddi_jax.training.methods import METHODS, num_attacks
from ddi_jax.training.sources import WARM, create_source, num_candidates, places
from ddi_jax.training.threats import THREAT_MODELS

StepFn = Callable[..., tuple["TrainState", dict[str, jax.Array]]]


class TrainState(NamedTuple):
  """All that changes during training.

  Attributes:
    step: number of steps taken.
    params: the model's parameters.
    model_state: its other arrays, BatchNorm's running statistics.
    opt_state: of the optax chain.
    moves: of the source warm, see ddi_jax/training/warm.py; else ().
  """

  step: jax.Array
  params: chex.ArrayTree
  model_state: chex.ArrayTree
  opt_state: chex.ArrayTree
  moves: chex.ArrayTree = ()


def stream_key(seed: int, stream: str, index: int | jax.Array) -> jax.Array:
  """The key of a step ("training", "direction"), a batch ("evaluation") or "judging".

  No two are the same.
  """
  stream_index = ("training", "evaluation", "direction", "judging").index(stream)
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), stream_index), index
  )


def create_schedule(config: ml_collections.ConfigDict, total: int) -> optax.Schedule:
  """The learning rate by step."""
  settings = config.optimizer
  if settings.schedule == "cosine":
    return optax.cosine_decay_schedule(settings.learning_rate, total)
  if settings.schedule == "step":
    boundaries: dict[int, float] = {}
    for milestone in settings.milestones:
      boundary = round(milestone * total)  # In a short run, several at one step.
      boundaries[boundary] = boundaries.get(boundary, 1.0) * settings.decay
    return optax.piecewise_constant_schedule(settings.learning_rate, boundaries)
  return optax.constant_schedule(settings.learning_rate)


def create_optimizer(
  config: ml_collections.ConfigDict,
  schedule: optax.Schedule,
  mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
  """K gradients -> direction -> weight decay and momentum -> update."""
  direction = METHODS[config.method].direction(config)
  if mesh is not None:
    direction = meshes.split_direction(direction, mesh, fsdp=config.mesh.fsdp)
  return optax.chain(direction, create_rule(config, schedule))


def create_rule(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
  """Direction -> weight decay and momentum -> update."""
  settings = config.optimizer
  if settings.name == "adam":
    return optax.adamw(schedule, weight_decay=settings.weight_decay)
  return optax.chain(
    optax.add_decayed_weights(settings.weight_decay),
    optax.sgd(schedule, momentum=settings.momentum),
  )


def create_train_state(
  params: chex.ArrayTree,
  model_state: chex.ArrayTree,
  optimizer: optax.GradientTransformationExtraArgs,
) -> TrainState:
  """The state before the first step."""
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, model_state, optimizer.init(params))


def state_shardings(state: TrainState, mesh: Mesh, fsdp: bool) -> TrainState:
  """How a train state lies on a mesh, a tree of shardings."""

  def everywhere(part):
    return meshes.shardings(part, mesh, split=False)

  def split(part):
    return meshes.shardings(part, mesh, split=fsdp)

  return TrainState(
    step=everywhere(state.step),
    params=split(state.params),
    model_state=everywhere(state.model_state),
    opt_state=split(state.opt_state),
    moves=everywhere(state.moves),
  )


def create_train_step(
  config: ml_collections.ConfigDict, *args: Any, **settings: Any
) -> StepFn:
  """`create_pure_step` of the same arguments, compiled; the state is donated."""
  return jax.jit(
    create_pure_step(config, *args, **settings),
    donate_argnums=0,
    compiler_options=compiler_options(config),
  )


def create_shared_step(
  config: ml_collections.ConfigDict,
  apply: Apply,
  total: int,
  *,
  steps_per_epoch: int,
  max_value: int,
  mesh: Mesh | None = None,
) -> StepFn:
  """As `create_train_step`, compiled to a program without seed and learning rate.

  They are arguments of the program, so that runs which differ in nothing else find it
  in a compilation cache that they share.

  Args:
    config: a checked config.
    apply: see `ddi_jax.models.functional`.
    total: the run's number of steps, for the schedule.
    steps_per_epoch: see `create_pure_step`, as are the others.
    max_value: the images' full scale.
    mesh: of several devices, or None.

  Returns:
    fn(state, images, labels, indices) -> (state, metrics).  The state is donated.
  """

  @functools.partial(
    jax.jit, donate_argnums=0, compiler_options=compiler_options(config)
  )
  def train_step(state, images, labels, indices, seed, learning_rate):
    of_run = config.copy_and_resolve_references()
    with of_run.ignore_type():  # They are tracers here.
      of_run.seed, of_run.optimizer.learning_rate = seed, learning_rate
    schedule = create_schedule(of_run, total)
    return create_pure_step(
      of_run,
      apply,
      create_optimizer(of_run, schedule, mesh),
      schedule,
      steps_per_epoch=steps_per_epoch,
      max_value=max_value,
      mesh=mesh,
    )(state, images, labels, indices)

  def step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array | None = None,
  ):
    seed, learning_rate = config.seed, config.optimizer.learning_rate
    return train_step(state, images, labels, indices, seed, learning_rate)

  return step


def create_pure_step(
  config: ml_collections.ConfigDict,
  apply: Apply,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  *,
  steps_per_epoch: int,
  max_value: int,
  mesh: Mesh | None = None,
) -> StepFn:
  """The training step of `config.method`, to be compiled.

  Args:
    config: a checked config.
    apply: see `ddi_jax.models.functional`.
    optimizer: from `create_optimizer`.
    schedule: the learning rate, for the log.
    steps_per_epoch: >= 1, for the settings that count epochs.
    max_value: the images' full scale.
    mesh: from `ddi_jax.training.mesh.create_mesh`; as the optimizer was made with, and
      `apply` with its `batch_axis`.

  Returns:
    Fn(state, images uint8 `[B, H, W, C]`, labels `[B]`, indices `[B]`) -> (state,
    metrics).  Its randomness is a function of (config.seed, step).  `indices` are the
    images' places in the training set, needed by the source warm only.
  """
  method = METHODS[config.method]
  restarts = num_attacks(config.method, config.num_restarts)
  attacked_apply = in_bfloat16(apply) if config.attack.dtype == "bfloat16" else apply

  warmup_steps = max(1, round(config.attack.warmup_epochs * steps_per_epoch))

  def gradients_of(params, model_state, inputs, labels, key, scalars, moves):
    """Gradients, losses `[K, B]`, correct `[K, B]`, model states, metrics, moves."""
    warmth, learning_rate = scalars

    def attacked_logits(inputs):
      train = config.attack.batch_norm == "train"
      return attacked_apply(params, model_state, inputs, train=train)[0]

    def attack_loss(inputs, labels):
      return losses.cross_entropy(attacked_logits(inputs), labels)

    def loss_fn(params, inputs, labels):
      train = config.gradient.batch_norm == "train"
      logits, new_state = apply(params, model_state, inputs, train=train)
      if not train:  # The statistics are updated with every method, in either mode.
        _, new_state = apply(params, model_state, inputs, train=True)
      correct = jnp.argmax(logits, axis=-1) == labels
      return losses.cross_entropy(logits, labels), (correct, new_state)

    candidates = inputs[None]
    if method.attacked:
      threat_model = THREAT_MODELS[config.attack.norm](warmth * config.attack.epsilon)
      pgd_settings = {
        "steps": config.attack.steps,
        "step_size": warmth * step_size(config.attack, config.attack.epsilon),
        "iterate": config.attack.iterate,
        "stop_below": config.attack.stop_below,
        "loop": config.loops.steps,
        "batch_axis": meshes.batch_axis(mesh),
      }
      if config.sources:
        source = create_source(config, warmth, threat_model, pgd_settings, moves)
        candidates = source(key, attacked_logits, inputs, labels)
        if warm.num_remembered(config):
          moves = jnp.swapaxes(candidates[places(config, WARM)] - inputs, 0, 1)
      else:
        attack = ddi_jax.pgd(
          threat_model, random_start=config.attack.random_start, **pgd_settings
        )
        candidates = ddi_jax.restart_candidates(
          attack,
          attack_loss,
          inputs,
          labels,
          key,
          meshes.restarts_per_device(mesh, restarts),
          loop=config.loops.restarts,
          at_a_time=config.restarts_at_a_time,
        )
    if method.select_worst:
      candidate_losses = jax.lax.map(lambda x: attack_loss(x, labels), candidates)
      candidates = meshes.worst_over_restarts(candidates, candidate_losses, mesh)[None]
    gradients, candidate_losses, aux, metrics = method_gradients(
      config,
      loss_fn,
      params,
      candidates,
      labels,
      learning_rate,
      batch_axis=meshes.batch_axis(mesh),
    )
    return gradients, candidate_losses, *aux, metrics, moves

  if mesh is not None:
    reduced = method.select_worst or method.proximal
    one_candidate = reduced or num_candidates(config) == 1
    gradients_of = meshes.split_gradients(
      gradients_of, mesh, one_candidate=one_candidate, one_key=bool(config.sources)
    )

  def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array | None = None,
  ):
    key = stream_key(config.seed, "training", state.step)
    augment_key, attack_key = jax.random.split(key)
    images = pad_crop_flip(
      augment_key, images, pad=config.data.pad, flip=config.data.flip
    )
    inputs = images.astype(jnp.float32) / max_value
    warmth = jnp.minimum(1.0, (state.step + 1) / warmup_steps)
    learning_rate = schedule(state.step)
    if mesh is not None and not config.sources:  # Which are made on every device.
      attack_key = jax.random.split(attack_key, restarts)
    epoch = state.step // steps_per_epoch
    recalled = warm.recall(config, state.moves, indices, epoch)
    moves = warm.augment(config, augment_key, recalled)
    gradients, candidate_losses, correct, model_states, found, moves = gradients_of(
      state.params,
      state.model_state,
      inputs,
      labels,
      attack_key,
      (warmth, learning_rate),
      moves,
    )
    moves = warm.remember(config, state.moves, indices, augment_key, recalled, moves)
    updates, opt_state = optimizer.update(
      gradients,
      state.opt_state,
      state.params,
      losses=None if method.proximal else candidate_losses.mean(axis=1),
      key=stream_key(config.seed, "direction", state.step),
    )
    params = optax.apply_updates(state.params, updates)
    model_state = jax.tree.map(lambda leaf: leaf.mean(axis=0), model_states)
    metrics = {
      "loss": candidate_losses.max(axis=0).mean(),
      "learning_rate": jnp.asarray(learning_rate),
      "update_norm": optax.tree_utils.tree_norm(updates),
      "param_norm": optax.tree_utils.tree_norm(params),
    }
    accuracy = correct.all(axis=0).mean()
    if method.attacked:
      metrics["robust_accuracy"] = accuracy
      metrics["epsilon"] = warmth * config.attack.epsilon
    else:
      metrics["accuracy"] = accuracy
    direction_state = opt_state[0]
    for name, value in direction_state._asdict().items():
      metrics[f"direction/{name}"] = value
    metrics |= found
    state = TrainState(state.step + 1, params, model_state, opt_state, moves)
    if mesh is not None:
      state = meshes.constrain(state, state_shardings(state, mesh, config.mesh.fsdp))
      metrics = meshes.constrain(metrics, meshes.shardings(metrics, mesh, split=False))
    return state, metrics

  return train_step
