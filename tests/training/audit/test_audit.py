"""The audit of a trained run, killed and resumed, and what it leaves behind."""

import json
import os
import shutil
import signal

from forked_programs import Program, run_program
import numpy as np
import program
import pytest

from ddi_jax import training
from ddi_jax.training.audit import plan as audit_plan
from ddi_jax.training.audit.journal import JOURNAL_FILE, Journal
from ddi_jax.training.storage import workdir as workdirs

SETTINGS = {
  "attack.epsilon": 0.05,
  "attack.steps": 1,
  "batch_size": 50,
  "data.limit": 100,
  "evaluation.batch_size": 5,
  "evaluation.steps": 2,
  "evaluation.test_limit": 40,
  "evaluation.validation_limit": 20,
  "model.hidden": 32,
  "model.normalization": "batch",
  "model.width": 8,
  "num_epochs": 20.0,
  "evaluation.every_epochs": 10.0,
  "num_restarts": 1,
}
ATTACKS = "apgd-ce,apgd-dlr"
EPSILONS = (0.0, 0.05, 0.1)
FOLDER = "evaluation-apgd-ce+apgd-dlr"
AUDIT = training.AuditSettings(ATTACKS, epsilons=EPSILONS, save=True)


def config_of(**changes):
  config = training.default_config()
  config.update_from_flattened_dict(SETTINGS | changes)
  return config


def command(workdir, *extra):
  optimizer = {"optimizer.learning_rate": 0.1, "optimizer.schedule": "constant"}
  return program.command(workdir, *extra, **SETTINGS, **optimizer)


def last_line(result):
  assert "Traceback" not in result.stderr
  return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "trained"
  summary = training.train(config_of(), workdir)
  return workdir, summary


@pytest.fixture(scope="module")
def audited(trained, tmp_path_factory):
  """An uninterrupted evaluation: its folder, and what it returned."""
  workdir = tmp_path_factory.mktemp("audited") / "run"
  shutil.copytree(trained[0], workdir)
  return workdir / FOLDER, training.audit_run(config_of(), workdir, AUDIT)


@pytest.fixture
def workdir(audited, tmp_path):
  """The run with its compiled programs, not evaluated."""
  shutil.copytree(
    audited[0].parent, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation-*")
  )
  return tmp_path / "run"


def results_of(folder):
  """The JSON file without what may differ, and the saved examples."""
  result = json.loads((folder / "evaluation.json").read_text())
  del result["seconds"]
  with np.load(folder / "adversarial_examples.npz") as examples:
    return result, dict(examples)


def assert_same_results(folder, other):
  (result, examples), (expected, expected_examples) = map(results_of, (folder, other))
  assert result == expected
  assert examples.keys() == expected_examples.keys()
  for name, array in examples.items():
    np.testing.assert_array_equal(array, expected_examples[name])


@pytest.mark.slow
def test_figures_are_those_of_the_trained_model(trained, audited):
  _, summary = trained
  folder, result = audited
  stored = json.loads((folder / "evaluation.json").read_text())
  assert stored == json.loads(json.dumps(result))
  # BatchNorm with its running statistics, as in the summary: same accuracy.
  assert result["clean_accuracy"] == pytest.approx(summary["clean_accuracy"])
  assert result["mean_confidence"] == pytest.approx(
    summary["mean_confidence"], rel=1e-4
  )
  assert result["step"] == summary["best_step"]
  assert result["pgd"]["attack"] == summary["attack"]
  assert (result["examples"], result["attacks"]) == (40, ATTACKS.split(","))
  assert 0.3 < result["clean_accuracy"] <= 1
  pgd = result["pgd"]
  assert result["robust_accuracy"] <= pgd["worst_robust_accuracy"]
  assert pgd["worst_robust_accuracy"] <= pgd["robust_accuracy"]
  assert pgd["worst_robust_accuracy"] <= pgd["calibrated_robust_accuracy"]
  assert pgd["robust_accuracy"] <= result["clean_accuracy"]
  broken = sum(result["broken"].values())
  assert broken > 0
  assert result["robust_accuracy"] == pytest.approx(
    result["clean_accuracy"] - broken / 40
  )
  low, high = result["robust_interval"]
  assert low < result["robust_accuracy"] < high


@pytest.mark.slow
def test_curve_and_files(audited):
  folder, result = audited
  curve = result["curve"]
  assert tuple(curve["epsilons"]) == EPSILONS
  assert curve["robust_accuracy"][0] == pytest.approx(result["clean_accuracy"])
  assert curve["robust_accuracy"] == sorted(curve["robust_accuracy"], reverse=True)
  for name in ("robust_accuracy.png", "adversarial_examples.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_saved_examples_are_adversarial(audited):
  folder, result = audited
  with np.load(folder / "adversarial_examples.npz") as examples:
    assert len(examples["indices"]) == sum(result["broken"].values())
    assert np.all(examples["labels"] != examples["wrong_labels"])
    sizes = np.abs(examples["adversarial"] - examples["clean"]).max(axis=(1, 2, 3))
    assert sizes.min() > 0
    assert sizes.max() <= 0.05 * (1 + 1e-5)
    attacks, counts = np.unique(examples["attacks"], return_counts=True)
  found = {name: count for name, count in result["broken"].items() if count}
  assert dict(zip(attacks.tolist(), counts.tolist(), strict=True)) == found


@pytest.mark.slow
def test_evaluated_again_it_attacks_nothing(audited, monkeypatch):
  folder, _ = audited
  before = (folder / JOURNAL_FILE).read_text()

  def refuse(self, progress):
    pytest.fail(f"attacked by {progress.attack}")

  monkeypatch.setattr(Journal, "write", refuse)
  again = training.audit_run(config_of(), folder.parent, AUDIT)
  assert again["seconds"] == json.loads(before.splitlines()[-1])["seconds"]
  assert (folder / JOURNAL_FILE).read_text() == before


def interrupt_after(count, monkeypatch):
  """SIGTERM to this process while it writes a batch."""
  write = Journal.write
  calls = iter(range(1, 10_000))

  def write_and_interrupt(self, progress):
    write(self, progress)
    if next(calls) == count:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(Journal, "write", write_and_interrupt)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(
  workdir, audited, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    interrupt_after(45, patch)
    assert training.audit_run(config_of(), workdir, AUDIT) is None
  assert "Interrupted and saved in" in capsys.readouterr().out
  folder = workdir / FOLDER
  assert not (folder / "evaluation.json").exists()
  lines = (folder / JOURNAL_FILE).read_text().splitlines()
  assert len(lines) == 1 + 45  # And one that says what is evaluated.
  training.audit_run(config_of(), workdir, AUDIT)
  assert (folder / JOURNAL_FILE).read_text().splitlines()[: len(lines)] == lines
  assert_same_results(folder, audited[0])


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_figures(workdir, audited, capsys):
  flags = [
    f"--evaluate={ATTACKS}",
    f"--evaluate_epsilons={','.join(map(str, EPSILONS))}",
    "--evaluate_save",
  ]
  journal = workdir / FOLDER / JOURNAL_FILE
  process = Program(command(workdir, *flags), workdir.parent)
  process.wait_until(
    lambda: journal.exists() and len(journal.read_text().splitlines()) > 8
  )
  process.kill()
  process.wait(timeout=60)
  assert process.returncode == -signal.SIGKILL, process.stderr
  assert not (workdir / FOLDER / "evaluation.json").exists()
  with journal.open("a") as file:
    file.write('{"attacks": ["apgd-ce", "apg')  # As if killed while writing.
  capsys.readouterr()
  training.audit_run(training.load_config(workdir), workdir, AUDIT)
  assert "PGD, calibrated" in capsys.readouterr().out
  assert_same_results(workdir / FOLDER, audited[0])


@pytest.mark.slow
def test_another_evaluation_in_the_same_folder_is_refused(audited, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(audited[0].parent, workdir)
  fewer = AUDIT._replace(limit=5)
  message = r"examples is 40 there and 5 here\): --evaluate_restart discards it"
  with pytest.raises(training.ConfigError, match=message):
    training.audit_run(config_of(), workdir, fewer)
  assert_same_results(workdir / FOLDER, audited[0])
  restarted = fewer._replace(restart=True, epsilons=())
  result = training.audit_run(config_of(), workdir, restarted)
  assert (result["examples"], result["curve"]) == (5, None)
  assert not (workdir / FOLDER / "robust_accuracy.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("change", "said"),
  [("inputs", "inputs is 'float32"), ("key", "key is 'threefry2x32 ")],
)
def test_results_of_something_else_in_the_folder_are_refused(
  audited, tmp_path, change, said
):
  """Where neither the config nor the number of images tells it."""
  workdir = tmp_path / "run"
  shutil.copytree(audited[0].parent, workdir)
  journal = workdir / FOLDER / JOURNAL_FILE
  lines = [json.loads(line) for line in journal.read_text().splitlines()]
  for line in lines:
    if "origin" in line:
      line["origin"][change] = f"{line['origin'][change]} once"
  journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(training.ConfigError, match=f"{said}.*--evaluate_restart"):
    training.audit_run(config_of(), workdir, AUDIT)


@pytest.mark.slow
def test_a_journal_of_an_earlier_version_is_resumed(audited, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(audited[0].parent, workdir)
  journal = workdir / FOLDER / JOURNAL_FILE
  lines = [json.loads(line) for line in journal.read_text().splitlines()]
  for line in lines:
    line.pop("origin", None)
  journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
  (workdir / FOLDER / "evaluation.json").unlink()
  training.audit_run(config_of(), workdir, AUDIT)
  assert_same_results(workdir / FOLDER, audited[0])
  assert len(journal.read_text().splitlines()) == len(lines)


@pytest.mark.slow
def test_another_curve_keeps_what_the_attacks_found(audited, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(audited[0].parent, workdir)
  journal = workdir / FOLDER / JOURNAL_FILE
  before = journal.read_text()
  other = AUDIT._replace(epsilons=(0.0, 0.01))
  result = training.audit_run(config_of(), workdir, other)
  assert result["robust_accuracy"] == audited[1]["robust_accuracy"]
  added = journal.read_text().removeprefix(before).splitlines()
  assert added
  assert all(json.loads(line)["attack"].endswith(" at 0.01") for line in added)


def test_workdirs_without_what_is_needed_are_refused(tmp_path):
  config = config_of()
  with pytest.raises(training.ConfigError, match="holds no run: train it first"):
    training.audit_run(config, tmp_path / "none")
  assert not (tmp_path / "none").exists()
  with workdirs.claim_workdir(tmp_path / "new", config):
    pass
  with pytest.raises(training.ConfigError, match="holds no best checkpoint yet"):
    training.audit_run(config, tmp_path / "new")
  with pytest.raises(training.ConfigError, match="seed is 0 there and 1 here"):
    training.audit_run(config_of(seed=1), tmp_path / "new")
  assert not list(tmp_path.glob("new/evaluation*"))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"attacks": "autoattck"}, "--evaluate must be autoattack, autoattack-plus or nam"),
    ({"attacks": "apgd-ce,pgd"}, "attacks must be among apgd-ce, .*; got pgd"),
    ({"checkpoint": "first"}, "--evaluate_checkpoint must be one of best, last; got"),
    ({"limit": 0}, "--evaluate_limit must be >= 1, got 0"),
    ({"epsilons": (0.1, 0.05)}, "--evaluate_epsilons must be .* got 0.1, 0.05"),
  ],
)
def test_impossible_settings_are_named(tmp_path, settings, message):
  with pytest.raises(training.ConfigError, match=message):
    training.audit_run(config_of(), tmp_path, training.AuditSettings(**settings))


def test_default_plan_is_autoattack_and_a_curve_to_twice_epsilon():
  plan = audit_plan.make_plan(config_of(), training.AuditSettings())
  assert plan.version == "standard"
  assert plan.attacks == ("apgd-ce", "apgd-t", "fab-t", "square")
  assert plan.epsilons == (0, 0.0125, 0.025, 0.0375, 0.05, 0.0625, 0.075, 0.1)
  assert plan.curve_attacks == ("apgd-ce", "apgd-t")
  config = config_of(**{"attack.epsilon": 0.0})
  assert audit_plan.make_plan(config, training.AuditSettings()).epsilons == ()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--evaluate_limit=5"], "launch.py: --evaluate_limit needs --evaluate."),
    (
      ["--evaluate=autoattack", "--evaluate_epsilons=0,a"],
      "launch.py: --evaluate_epsilons must be numbers separated by commas: could not "
      "convert string to float: 'a'.",
    ),
  ],
)
def test_bad_flags_stop_at_once_in_one_line(tmp_path, flags, message):
  result = run_program(command(tmp_path / "run", *flags), tmp_path)
  assert result.returncode == 1
  assert last_line(result) == message
  assert not (tmp_path / "run").exists()
