"""Worst-class robustness: the greatest of the classes' mean robust losses.

python -m experiments.worst_class --config=experiments/configs/worst_class.py \
  --data_dir=DIR --output=docs/data

Adversarial training protects some classes far better than others (Xu et al., 2021, "To
be robust or to be fair").  In this experiment the worst class counts.  The problem is
min over theta of max over c of E[max l | class c], a maximum of different smooth
functions.  A step costs the same as in ordinary adversarial training: it attacks one
batch with equally many images of each class, and computes each class' gradient from the
images of this class.

For every method, a sweep on one seed chooses the learning rate with the best validation
robust accuracy of the worst class.  Other seeds then compare the methods.
"""

from collections.abc import Callable, Iterator, Sequence
import json
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pandas as pd

import ddi_jax
from ddi_jax import data, losses
from ddi_jax.models.pure import Apply
from ddi_jax.training.run import report
from ddi_jax.training.run.experiment import Experiment, create_experiment, load_data
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.settings.check import check_config, drop_unused
from ddi_jax.training.settings.optimizers import create_rule
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.step.gradients import StepGradients
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.train_step import StepParts
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage import files
from ddi_jax.training.storage.workdir import claim_workdir
from experiments import program, sweep

# (Kind, value).  The value is the rate of the weights for group DRO, and the t of the
# bundle form for DDi.  MAX is DDi with t -> 0.
ARMS: dict[str, tuple[str, float | None]] = {
  "AVG": ("average", None),
  "MAX": ("danskin", 1e-6),
  "group DRO, rate 0.02": ("group_dro", 0.02),
  "group DRO, rate 0.05": ("group_dro", 0.05),
  "DDi": ("danskin", None),
  "DDi, t = 0.03": ("danskin", 0.03),
  "DDi, t = 0.1": ("danskin", 0.1),
  "DDi, t = 0.3": ("danskin", 0.3),
}
BASELINES = tuple(arm for arm in ARMS if not arm.startswith("DDi"))


def create_direction(
  arm: str, num_classes: int
) -> optax.GradientTransformationExtraArgs:
  """Create the transformation of the classes' gradients and losses to a direction."""
  kind, value = ARMS[arm]
  if kind == "average":
    return ddi_jax.average_direction(normalize=False)
  if kind == "group_dro":
    assert value is not None
    return group_dro_direction(value, num_classes)
  return ddi_jax.danskin_direction(normalize=False, bundle_step=value)


def group_dro_direction(
  rate: float, count: int
) -> optax.GradientTransformationExtraArgs:
  """The mean of K gradients, with weights that grow by e^(rate * loss) per step.

  This is algorithm 1 of Sagawa et al. (2020), "Distributionally robust neural
  networks".  The state is the logarithm of the weights `[K]`, up to a constant.
  """

  def init(params):
    del params
    return jnp.zeros(count)

  def update(updates, state, params=None, *, losses, **extra_args):
    del params, extra_args
    state = state + rate * losses
    weights = jax.nn.softmax(state)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def stages(config: ml_collections.ConfigDict, folder: Path) -> Iterator[sweep.Runs]:
  """Two stages: the sweep of learning rates, then the best ones on other seeds."""
  for setting in config.training:
    rates = config.learning_rates[setting]
    swept = sweep.named(
      arm_run(config, setting, arm, rate, config.sweep_seed)
      for arm in config.arms
      for rate in rates
    )
    yield swept
    found = sweep.finished(swept, folder)
    yield sweep.named(
      arm_run(config, setting, arm, rate, seed)
      for arm, rate in best_learning_rates(found, folder).items()
      for seed in config.seeds
    )


def arm_run(
  config: ml_collections.ConfigDict,
  setting: str,
  arm: str,
  learning_rate: float,
  seed: int,
) -> sweep.Run:
  """A training config with the field `arm`."""
  run = drop_unused(config.training[setting])
  run.optimizer.learning_rate, run.seed = learning_rate, seed
  with run.unlocked():
    run.arm = arm
  return sweep.Run(setting, run)


def best_learning_rates(runs: sweep.Runs, folder: Path) -> dict[str, float]:
  """For each arm, the learning rate of the run with the most robust worst class."""
  best: dict[str, tuple[float, float]] = {}
  for name, (_, config) in runs.items():
    summary = json.loads((folder / name / report.SUMMARY_FILE).read_text())
    found = (summary["validation_worst_class"], config.optimizer.learning_rate)
    best[config.arm] = max(found, best.get(config.arm, found))
  return {arm: rate for arm, (_, rate) in best.items()}


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
  """Train a network with one arm, and evaluate it by class.

  Args:
    config: see `arm_run`.
    workdir: receives config.json and summary.json.

  Returns:
    The content of summary.json; None if the run was interrupted.  An interrupted run
    keeps nothing.

  Raises:
    ConfigError: if a setting is impossible.
  """
  began = time.monotonic()
  check_config(config)
  splits = load_data(config)
  if config.batch_size % splits.num_classes:
    raise ConfigError(
      f"config.batch_size must be a multiple of {splits.num_classes}, the number of "
      f"classes; got {config.batch_size}."
    )
  if config.model.normalization == "batch":
    raise ConfigError("config.model.normalization must be none or group; got 'batch'.")
  limits = config.evaluation
  every = all_of(splits.train, None)
  validation = all_of(splits.validation, limits.validation_limit)
  test = all_of(splits.test, limits.test_limit)
  for name, part in (("training", every), ("validation", validation), ("test", test)):
    missing = np.setdiff1d(np.arange(splits.num_classes), part.labels)
    if len(missing):
      raise ConfigError(
        f"config.data.limit and config.evaluation's limits must leave images of each "
        f"class; the {name} set has none of class {missing[0]}."
      )
  with claim_workdir(workdir, config), Interruption() as interrupted:
    num_classes = splits.num_classes
    experiment = create_experiment(
      config, splits, change_parts=by_class(config, num_classes)
    )
    state = experiment.start()
    per_class = config.batch_size // num_classes
    labels = np.repeat(np.arange(num_classes), per_class)
    members = members_of(every.labels)
    for index in range(experiment.total_steps):
      if interrupted():
        return None
      chosen = balanced_indices(members, per_class, config.seed, index)
      batch = {"image": every.images[chosen], "label": labels}
      state, _ = experiment.train_step(state, batch, experiment.hyperparameters)
    of_validation = validate_by_class(experiment, state, validation)
    of_test = validate_by_class(experiment, state, test)
    summary = {
      "steps": experiment.total_steps,
      "seconds": time.monotonic() - began,
      "clean_accuracy": float(np.mean([e.clean_accuracy for e in of_test])),
      "robust_accuracy": float(np.mean([e.robust_accuracy for e in of_test])),
      "worst_class": min(e.robust_accuracy for e in of_test),
      "worst_class_loss": max(e.robust_loss for e in of_test),
      "by_class": [round(e.robust_accuracy, 4) for e in of_test],
      "validation_worst_class": min(e.robust_accuracy for e in of_validation),
    }
    files.write_json(workdir / report.SUMMARY_FILE, summary)
    return summary


def all_of(examples: data.Examples, limit: int | None) -> data.Dataset:
  """The first `limit` examples, or all if None, in memory."""
  examples = examples.first(limit)
  read = examples.read(np.arange(len(examples)))
  return data.Dataset(read["image"], read["label"])


def members_of(labels: np.ndarray) -> list[np.ndarray]:
  """The indices of each class' images."""
  return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def balanced_indices(
  members: Sequence[np.ndarray], per_class: int, seed: int, step: int
) -> np.ndarray:
  """The indices of a batch with `per_class` images of each class, in class order.

  The images are drawn with replacement.
  """
  rng = np.random.default_rng((seed, step))
  return np.concatenate([rng.choice(places, per_class) for places in members])


def by_class(
  config: ml_collections.ConfigDict, num_classes: int
) -> Callable[[StepParts, Apply], StepParts]:
  """Make a function that changes the step's parts.

  The step then computes a gradient for each class, and uses the arm's direction.  The
  images of a batch must be in class order, equally many of each class.
  """

  def change_parts(parts: StepParts, apply: Apply) -> StepParts:
    def class_gradients(state, candidates, labels, learning_rate, key=None):
      del learning_rate

      def of_class(part):
        points, part_labels = part

        def mean_loss(params):
          logits = apply(params, state.model_state, points, train=True, key=key)[0]
          class_losses = losses.cross_entropy(logits, part_labels)
          return class_losses.mean(), (class_losses, logits.argmax(1) == part_labels)

        return jax.grad(mean_loss, has_aux=True)(state.params)

      parts_of_batch = jax.tree.map(
        lambda leaf: leaf.reshape(num_classes, -1, *leaf.shape[1:]),
        (candidates[0], labels),
      )
      gradients, (class_losses, correct) = jax.lax.map(of_class, parts_of_batch)
      return StepGradients(
        gradients, class_losses, correct.reshape(1, -1), state.model_state, {}
      )

    direction = create_direction(config.arm, num_classes)
    return parts._replace(
      gradients=class_gradients, optimizer=optax.chain(direction, create_rule(config))
    )

  return change_parts


def validate_by_class(
  experiment: Experiment, state: TrainState, examples: data.Dataset
) -> list[Validation]:
  """Validate each class by itself."""
  validations = []
  for label in range(experiment.splits.num_classes):
    of_class = examples.labels == label
    part = data.Dataset(examples.images[of_class], examples.labels[of_class])
    validation = experiment.validate(state, part)
    assert validation is not None  # It is never interrupted.
    validations.append(validation)
  return validations


def tables(runs: sweep.Runs, folder: Path) -> dict[str, pd.DataFrame]:
  """The runs."""
  rows = []
  for name, (_, config) in runs.items():
    summary = json.loads((folder / name / report.SUMMARY_FILE).read_text())
    fields = ("worst_class", "worst_class_loss", "validation_worst_class", "by_class")
    rows.append({"run": name, "arm": config.arm} | {f: summary[f] for f in fields})
  found = pd.DataFrame(rows)
  return {"runs": program.runs_table(runs, folder).merge(found, on="run")}


if __name__ == "__main__":
  program.main(train, stages, tables)
