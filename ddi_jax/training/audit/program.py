"""The audit of a run: AutoAttack, PGD at a temperature, accuracy by radius."""

import contextlib
from pathlib import Path
from typing import Any
import warnings

import chex
import jax
import ml_collections
import numpy as np

import ddi_jax
from ddi_jax import models
from ddi_jax.attacks import Progress, ResumeError
from ddi_jax.evaluation.curve import stage_names
from ddi_jax.evaluation.robustness import PGD_NAMES
from ddi_jax.training.audit import report
from ddi_jax.training.audit.journal import JOURNAL_FILE, Journal
from ddi_jax.training.audit.plan import AuditPlan, AuditSettings, make_plan
from ddi_jax.training.audit.progress import ProgressBar
from ddi_jax.training.audit.report import Results, Subject
from ddi_jax.training.devices.compilation import compilation_cache_in
from ddi_jax.training.run.experiment import load_data
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.run.restore import restore_model
from ddi_jax.training.settings.check import check_config
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.threats import THREAT_MODELS
from ddi_jax.training.step.state import random_key
from ddi_jax.training.step.validation import evaluation_attack
from ddi_jax.training.storage.workdir import absolute, find_run, locked

# Maximum number of examples for the curve, because it needs many attacks.
CURVE_LIMIT = 500


def audit_run(
  config: ml_collections.ConfigDict,
  workdir: Path | str,
  settings: AuditSettings | None = None,
) -> dict[str, Any] | None:
  """Evaluate a checkpoint of a run on the test images, without training.

  Results are written to `workdir/evaluation-NAME/` after every batch.  If the
  evaluation is interrupted in any way, call this function again: it resumes and reaches
  the same result.  SIGTERM, SIGINT and SIGHUP end it after the batch in progress.

  Args:
    config: the run's config.
    workdir: the run's folder.
    settings: see `AuditSettings`.

  Returns:
    The content of evaluation.json; None if interrupted.

  Raises:
    ConfigError: if a setting is impossible; if the workdir holds no run of this config
      or no checkpoint; or if it holds an evaluation of something else, or one that is
      running.
    CheckpointError: if the checkpoint is damaged.
    DataError: if the data are not available.

  Example:
    >>> import contextlib, io, tempfile
    >>> from pathlib import Path
    >>> from ddi_jax import training
    >>> config = training.select_variant(training.default_config(), "debug")
    >>> config.num_epochs, config.model.name = 0.5, "mlp"
    >>> folder = tempfile.TemporaryDirectory()
    >>> workdir = Path(folder.name) / "run"
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...   summary = training.train(config, workdir)
    ...   result = training.audit_run(
    ...     config, workdir, training.AuditSettings("apgd-ce", limit=8, epsilons=()))
    >>> result["examples"], result["robust_accuracy"] <= result["clean_accuracy"]
    (8, True)
    >>> folder.cleanup()
  """
  settings = settings or AuditSettings()
  workdir = absolute(workdir)
  check_config(config)
  plan = make_plan(config, settings)
  find_run(workdir, config)
  folder = workdir / settings.folder_name
  subject = _load_subject(config, workdir, settings)
  description = {
    "attacks": list(plan.attacks),
    "checkpoint": settings.checkpoint,
    "step": subject.step,
    "examples": len(subject.labels),
    "norm": plan.threat_model.norm,
    "epsilon": plan.threat_model.epsilon,
  }
  with contextlib.ExitStack() as stack:
    folder.mkdir(exist_ok=True)
    stack.enter_context(locked(folder))
    if settings.restart:
      (folder / JOURNAL_FILE).unlink(missing_ok=True)
    stack.enter_context(compilation_cache_in(workdir))
    interrupted = stack.enter_context(Interruption())
    journal = stack.enter_context(
      contextlib.closing(Journal(folder, description, subject.inputs))
    )
    # Hide AutoAttack's warnings, because the report lists them.
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message="AutoAttack: ")
    print(
      f"Evaluating {config.method} on {config.data.name}, {settings.checkpoint} "
      f"checkpoint (step {subject.step}): {len(subject.labels):,} test images, "
      f"{plan.threat_model.norm} epsilon {plan.threat_model.epsilon:g}, by "
      f"{', '.join(plan.attacks)}, on {jax.default_backend()}.\nFolder: {folder}"
    )
    try:
      results = _attack(config, plan, subject, journal, interrupted)
    except ResumeError as error:
      raise ConfigError(
        f"{folder} holds another evaluation ({error}): --evaluate_restart discards it."
      ) from error
  if results is None:
    print(f"Interrupted and saved in {folder}; the same command resumes.")
    return None
  return report.write(
    folder,
    config,
    settings,
    description,
    subject,
    results,
    seconds=journal.seconds,
  )


def _load_subject(
  config: ml_collections.ConfigDict, workdir: Path, settings: AuditSettings
) -> Subject:
  """Load a checkpoint's model, in evaluation mode, and the test images."""
  splits = load_data(config)
  model, step = restore_model(config, workdir, settings.checkpoint)
  apply, params, model_state = models.functional(model)

  def logits_of(
    params: chex.ArrayTree, model_state: chex.ArrayTree, inputs: jax.Array
  ) -> jax.Array:
    return apply(params, model_state, inputs, train=False)[0]

  test = splits.test.first(settings.limit or config.evaluation.test_limit)
  examples = test.read(np.arange(len(test)))
  return Subject(
    logits_fn=jax.tree_util.Partial(logits_of, params, model_state),
    inputs=examples["image"].astype(np.float32) / splits.max_value,
    labels=examples["label"],
    step=step,
    num_classes=splits.num_classes,
  )


def _attack(
  config: ml_collections.ConfigDict,
  plan: AuditPlan,
  subject: Subject,
  journal: Journal,
  interrupted: Interruption,
) -> Results | None:
  """Run all attacks that are not yet in the journal; None if interrupted."""
  settings, results = config.evaluation, journal.results
  norm, epsilon = plan.threat_model.norm, float(plan.threat_model.epsilon)
  examples, curve_size = len(subject.labels), min(CURVE_LIMIT, len(subject.labels))
  curve_names = stage_names(plan.epsilons, plan.curve_attacks)
  sizes = {plan.attacks: examples}
  sizes |= {(name,): examples for name in PGD_NAMES}
  sizes |= {curve_names: curve_size}
  costs = dict.fromkeys(PGD_NAMES, 3 * settings.steps * settings.restarts)
  bar = ProgressBar(sizes, costs, results)

  def after_batch(progress: Progress) -> bool:
    journal.write(progress)
    bar.show(progress)
    return interrupted()

  resumed = None
  if plan.attacks in results:
    done = {name: results[(name,)] for name in PGD_NAMES if (name,) in results}
    resumed = ddi_jax.RobustnessEvaluation(
      mean_confidence=float("nan"),
      temperature=float("nan"),
      pgd=done,
      autoattack=results[plan.attacks],
    )
  with bar:
    evaluation = ddi_jax.evaluate(
      random_key(config.seed, "audit", 0),
      subject.logits_fn,
      subject.inputs,
      subject.labels,
      plan.threat_model,
      version=plan.version,
      pgd_attack=evaluation_attack(config, norm, epsilon),
      pgd_restarts=settings.restarts,
      batch_size=settings.batch_size,
      after_batch=after_batch,
      resume=resumed,
    )
    if not evaluation.finished:
      return None
    if not plan.epsilons:
      return Results(evaluation, None)
    resumed_curve = None
    if curve_names in results:
      resumed_curve = ddi_jax.RobustnessCurve(
        plan.epsilons, plan.curve_attacks, results[curve_names]
      )
    curve = ddi_jax.robustness_curve(
      random_key(config.seed, "audit", 1),
      subject.logits_fn,
      subject.inputs[:curve_size],
      subject.labels[:curve_size],
      THREAT_MODELS[norm],
      plan.epsilons,
      attacks=plan.curve_attacks,
      batch_size=settings.batch_size,
      after_batch=after_batch,
      resume=resumed_curve,
    )
  return Results(evaluation, curve) if curve.result.finished else None
