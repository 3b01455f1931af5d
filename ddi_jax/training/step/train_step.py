"""One training step, which is the same for all methods.

batch -> candidates -> K gradients -> direction -> optax rule -> parameters
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import optax

from ddi_jax.data import pad_crop_flip
from ddi_jax.gradients.gram import unit_norm
from ddi_jax.models.convolution.xla_options import compiler_options
from ddi_jax.models.pure import Apply
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.methods import create_direction, find_method
from ddi_jax.training.settings.model import width
from ddi_jax.training.settings.optimizers import Schedule, create_rule, create_schedule
from ddi_jax.training.step.candidates import Candidates, CandidatesFn, create_candidates
from ddi_jax.training.step.gradients import GradientsFn, create_gradients
from ddi_jax.training.step.state import Hyperparameters, TrainState, random_key

Batch = Mapping[str, Any]
StepFn = Callable[
  [TrainState, Batch, Hyperparameters], tuple[TrainState, dict[str, jax.Array]]
]


class StepParts(NamedTuple):
  """The parts of a step; each function is pure and can be replaced.

  Attributes:
    augment: (key, images uint8 `[B, H, W, C]`) -> inputs in [0, 1].
    candidates: see `training.step.candidates`.
    gradients: see `training.step.gradients`.
    optimizer: K gradients -> direction -> weight decay and momentum.  Its updates are
      multiplied by minus the learning rate.
    schedule: step -> the learning rate as a fraction of the initial one.
    attacked: whether the candidates are adversarial.
  """

  augment: Callable[[jax.Array, jax.Array], jax.Array]
  candidates: CandidatesFn
  gradients: GradientsFn
  optimizer: optax.GradientTransformationExtraArgs
  schedule: Schedule
  attacked: bool


def create_parts(
  config: ml_collections.ConfigDict,
  apply: Apply,
  *,
  steps_per_epoch: int,
  total_steps: int,
  max_value: int,
  mesh: Mesh | None = None,
) -> StepParts:
  """Create the parts of `config.method`'s step.

  Args:
    config: a checked config.
    apply: see `ddi_jax.models.functional`.
    steps_per_epoch: steps in an epoch, >= 1, for settings that count epochs.
    total_steps: steps in the run, >= 1, for the schedule.
    max_value: the images' full scale.
    mesh: from `training.devices.mesh.create_mesh`.
  """

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    images = pad_crop_flip(key, images, pad=config.data.pad, flip=config.data.flip)
    return images.astype(jnp.float32) / max_value

  return StepParts(
    augment=augment,
    candidates=create_candidates(
      config, apply, steps_per_epoch=steps_per_epoch, mesh=mesh
    ),
    gradients=create_gradients(config, apply, mesh),
    optimizer=create_optimizer(config),
    schedule=create_schedule(config, total_steps),
    attacked=find_method(config).attacked,
  )


def create_optimizer(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformationExtraArgs:
  """Create the optimiser up to the learning rate: K gradients -> updates.

  It combines the gradients into a direction, and applies weight decay and momentum.
  With the method `proximal`, the updates are already the direction.  It is scaled to
  unit norm if `config.unit_norm` is True.
  """
  if not find_method(config).proximal:
    direction = create_direction(config)
  elif config.unit_norm:
    direction = optax.stateless(lambda updates, params: unit_norm(updates))
  else:
    direction = optax.identity()
  rule = create_rule(config)
  return optax.chain(_named("direction", direction), _named("optimizer", rule))


def _named(
  name: str, part: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """The same transformation, with named operations in the compiled program."""
  part = optax.with_extra_args_support(part)
  return optax.GradientTransformationExtraArgs(
    part.init, jax.named_scope(name)(part.update)
  )


def create_train_step(parts: StepParts) -> StepFn:
  """Create the training step, a pure function.

  Args:
    parts: from `create_parts`.

  Returns:
    fn(state, batch, hyperparameters) -> (state, metrics).  The batch has "image", uint8
    `[B, H, W, C]`, "label", integers `[B]`, and "index", `[B]`, the images' indices in
    the training set.  All random numbers derive from the seed and the step.
  """

  def train_step(
    state: TrainState, batch: Batch, hyperparameters: Hyperparameters
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    key = random_key(hyperparameters.seed, "training", state.step)
    augment_key, attack_key = jax.random.split(key)
    learning_rate = hyperparameters.learning_rate * parts.schedule(state.step)
    inputs, labels = parts.augment(augment_key, batch["image"]), batch["label"]

    # The names of the parts appear in profiles and in the compiled program.
    with jax.named_scope("attack"):
      candidates = parts.candidates(
        state, inputs, labels, batch.get("index"), attack_key, augment_key
      )
    dropout_key = random_key(hyperparameters.seed, "dropout", state.step)
    with jax.named_scope("gradients"):
      gradients = parts.gradients(
        state, candidates.points, labels, learning_rate, dropout_key
      )
    directions, opt_state = parts.optimizer.update(
      gradients.updates,
      state.opt_state,
      state.params,
      losses=gradients.losses.mean(axis=1),
      key=random_key(hyperparameters.seed, "direction", state.step),
    )
    with jax.named_scope("optimizer"):
      updates = jax.tree.map(lambda leaf: -learning_rate * leaf, directions)
      params = optax.apply_updates(state.params, updates)

    metrics = {
      "loss": gradients.losses.max(axis=0).mean(),
      "learning_rate": learning_rate,
      "update_norm": optax.tree_utils.tree_norm(updates),
      "param_norm": optax.tree_utils.tree_norm(params),
      **_accuracy(gradients.correct, candidates, parts.attacked),
      **_scalars("direction", opt_state[0]),
      **gradients.metrics,
    }
    state = TrainState(
      state.step + 1, params, gradients.model_state, opt_state, candidates.memory
    )
    return state, metrics

  return train_step


def jit_step(
  step: StepFn,
  config: ml_collections.ConfigDict,
  state: TrainState,
  mesh: Mesh | None = None,
) -> Any:
  """Jit the step, as the program, the benchmarks and the experiments run it.

  Args:
    step: from `create_train_step`.
    config: the run's config.
    state: a state with the shapes with which the step will be called.
    mesh: mesh of several devices, or None.

  Returns:
    The jitted step.  It donates the state.
  """
  settings: dict[str, Any] = {"donate_argnums": 0}
  settings["compiler_options"] = compiler_options(width(config), mesh)
  if mesh is None:
    return jax.jit(step, **settings)

  def step_with_whole_parameters(
    state: TrainState, batch: Batch, hyperparameters: Hyperparameters
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    return step(
      state._replace(params=meshes.gathered(state.params, mesh)), batch, hyperparameters
    )

  state_sharding = state_shardings(state, mesh, config.mesh.fsdp)
  replicated = meshes.replicated(mesh)
  compiled = jax.jit(
    step_with_whole_parameters, out_shardings=(state_sharding, replicated), **settings
  )
  return meshes.InMesh(compiled, mesh)


def state_shardings(state: TrainState, mesh: Mesh, fsdp: bool) -> TrainState:
  """The shardings of a train state on a mesh.

  The optimiser's state is split over all devices, so that only the parameters are
  gathered after an update.  With `fsdp`, the parameters too stay split until the next
  step.
  """

  def sharding(part: chex.ArrayTree, split: bool) -> Any:
    return meshes.shardings(part, mesh, split=split)

  return TrainState(
    step=sharding(state.step, False),
    params=sharding(state.params, fsdp),
    model_state=sharding(state.model_state, False),
    opt_state=sharding(state.opt_state, True),
    memory=sharding(state.memory, False),
  )


def _accuracy(
  correct: jax.Array, candidates: Candidates, attacked: bool
) -> dict[str, jax.Array]:
  accuracy = correct.all(axis=0).mean()
  if not attacked:
    return {"accuracy": accuracy}
  radius = {} if candidates.epsilon is None else {"epsilon": candidates.epsilon}
  return {"robust_accuracy": accuracy, **radius}


def _scalars(prefix: str, state: chex.ArrayTree) -> dict[str, jax.Array]:
  """The scalars in a direction's state, by name; the state can be any pytree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {
    "/".join([prefix, *(_name_of(entry) for entry in path)]): leaf
    for path, leaf in leaves
    if jnp.ndim(leaf) == 0
  }


def _name_of(entry: Any) -> str:
  """The name of one entry of a pytree path: an attribute, a key or an index."""
  for field in ("name", "key", "idx"):
    if hasattr(entry, field):
      return str(getattr(entry, field))
  return str(entry)
