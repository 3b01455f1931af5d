"""The program as its users run it: in a process of its own, interrupted, resumed."""

import json
import os
from pathlib import Path
import signal

from forked_programs import Program
import jax
import numpy as np
from program import command, launch, parameters, small_config
import pytest
from tensorboard_events import scalars

from ddi_jax import training
from ddi_jax.data.examples import StreamedDataset
from ddi_jax.training.run import program, report
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage import files, logs
from ddi_jax.training.storage import workdir as workdirs
from ddi_jax.training.storage.checkpoints import Checkpoints, good_steps


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """An uninterrupted run, started by Python as users start it, not forked."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  result = launch(workdir, fresh=True)
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout


@pytest.mark.slow
def test_files_of_a_finished_run(finished):
  workdir, output = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["method"] == "danskin"
  assert (summary["seed"], summary["steps"]) == (0, 12)
  for field in ("clean_accuracy", "robust_accuracy", "mean_confidence"):
    assert 0 <= summary[field] <= 1
  assert summary["seconds"] > 0
  assert "PGD-2, linf epsilon 0.15, step size 0.1875" in summary["attack"]
  config = json.loads((workdir / "config.json").read_text())
  assert config["attack"]["epsilon"] == 0.15
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert "this run, best on validation" in output
  assert str(workdir) in output
  assert len(output.splitlines()) < 20


@pytest.mark.slow
def test_metrics_are_logged_at_every_step(finished):
  workdir, _ = finished
  records = list(logs.read_metrics(workdir))
  train = [record for record in records if record["split"] == "train"]
  assert [record["step"] for record in train] == list(range(1, 13))
  for name in ("loss", "robust_accuracy", "learning_rate", "direction/cosine"):
    assert all(np.isfinite(record[name]) for record in train)
  validation = [record for record in records if record["split"] == "validation"]
  assert [record["step"] for record in validation] == [0, 12]
  assert [record["step"] for record in records if record["split"] == "test"] == [12]
  events = scalars(workdir / "tensorboard")
  assert [step for step, _ in events["train/loss"]] == list(range(1, 13))
  np.testing.assert_allclose(
    [value for _, value in events["train/loss"]],
    [record["loss"] for record in train],
    rtol=1e-6,
  )


@pytest.mark.slow
def test_a_finished_run_is_reported_not_repeated(finished):
  workdir, _ = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  result = launch(workdir)
  assert result.returncode == 0, result.stderr
  assert "complete; nothing to do" in result.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def last_step(workdir):
  return max((record["step"] for record in logs.read_metrics(workdir)), default=0)


def wait_for_step(process, workdir, step):
  process.wait_until(lambda: last_step(workdir) >= step)


# Checkpoints at steps 0, 4, 8 and 12; the same run as `finished` otherwise.
OFTEN = {"evaluation.every_epochs": 1.0}


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  config = training.load_config(finished[0])
  config.update_from_flattened_dict(OFTEN)
  training.train(config, workdir)
  return workdir


def start(workdir, fresh=False):
  return Program(command(workdir, **OFTEN), workdir.parent, fresh=fresh)


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_identical(finished, uninterrupted, tmp_path):
  workdir = tmp_path / "interrupted"
  process = start(workdir)
  wait_for_step(process, workdir, 2)
  process.kill()
  process.wait()
  assert process.returncode == -signal.SIGKILL

  before = last_step(workdir)
  process = start(workdir, fresh=True)
  wait_for_step(process, workdir, before + 1)
  process.send_signal(signal.SIGHUP)
  output = process.wait(timeout=60).stdout
  assert process.returncode == 128 + signal.SIGTERM
  assert "the same command resumes" in output
  assert not (workdir / "summary.json").exists()

  resumed = launch(workdir, **OFTEN)
  assert resumed.returncode == 0, resumed.stderr
  assert "steps 0 to 12" not in resumed.stdout
  jax.tree.map(
    np.testing.assert_array_equal, parameters(workdir), parameters(uninterrupted)
  )
  # Evaluating more often changes no parameter either.
  jax.tree.map(
    np.testing.assert_array_equal, parameters(workdir), parameters(finished[0])
  )
  summaries = [
    json.loads((folder / "summary.json").read_text())
    for folder in (workdir, uninterrupted)
  ]
  for summary in summaries:
    del summary["seconds"]
  assert summaries[0] == summaries[1]

  def history(folder):
    return sorted(map(json.dumps, logs.read_metrics(folder)))

  assert history(workdir) == history(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noticed_unless_it_is_ignored(number):
  before = signal.signal(number, signal.SIG_IGN)
  try:
    with Interruption() as interruption:  # As nohup does with SIGHUP.
      os.kill(os.getpid(), number)
      assert not interruption()
    assert signal.getsignal(number) == signal.SIG_IGN
    signal.signal(number, signal.SIG_DFL)
    with Interruption() as interruption:
      os.kill(os.getpid(), number)
      assert interruption()
    assert signal.getsignal(number) == signal.SIG_DFL
  finally:
    signal.signal(number, before)


@pytest.mark.slow
def test_a_second_interrupt_while_saving_leaves_the_last_good_checkpoint(
  tmp_path, capsys
):
  workdir = tmp_path / "run"
  program = ("tests/training/run/slow_saver.py",)
  process = Program(command(workdir, program=program, **OFTEN), tmp_path)
  process.wait_until(lambda: "saving 0\n" in process.stdout)
  process.send_signal(signal.SIGINT)
  process.wait_until(lambda: process.stdout.count("saving ") == 2)
  process.send_signal(signal.SIGINT)
  errors = process.wait(timeout=300).stderr
  assert process.returncode == 130
  assert "Traceback" not in errors
  (message,) = [line for line in errors.splitlines() if line.startswith("launch.py: ")]
  assert "the same command resumes from the last checkpoint" in message
  assert good_steps(workdir) == [0]
  training.train(training.load_config(workdir), workdir)
  assert "steps 0 to 12" in capsys.readouterr().out
  assert not (workdir / "damaged_checkpoints").exists()


@pytest.mark.slow
def test_a_workdir_is_where_the_user_meant(tmp_path, monkeypatch):
  """Relative, with characters of patterns, by a link, in the home folder."""
  home, elsewhere = tmp_path / "home [of]*? \u00e9", tmp_path / "elsewhere"
  home.mkdir()
  elsewhere.mkdir()
  (tmp_path / "link").symlink_to(home)
  monkeypatch.setenv("HOME", str(home))

  def load_data(config):
    os.chdir(elsewhere)  # As a user's own data set may.
    return training.load_data(config)

  monkeypatch.setattr(program, "load_data", load_data)
  monkeypatch.chdir(tmp_path)
  config = small_config(num_epochs=0.5, **{"model.name": "mlp"})
  summary = training.train(config, "link/run [1]")
  assert (home / "run [1]" / "summary.json").exists()
  assert training.train(config, Path("~/run [1]")) == summary
  assert training.load_config("~/run [1]").model.name == "mlp"
  training.load_model("~/run [1]")
  assert not list(elsewhere.iterdir())
  assert {path.name for path in tmp_path.iterdir()} == {home.name, "elsewhere", "link"}
  with pytest.raises(training.ConfigError, match="workdir must begin with ~ or"):
    training.train(config, "~nobody_of_this_name/run")
  for name in ("back\\slash", "\udcff"):  # Checkpoints would lie elsewhere, or nowhere.
    with pytest.raises(training.ConfigError, match="UTF-8 without backslashes"):
      training.train(config, name)


def test_interrupted_before_an_evaluation_still_competes_for_the_best(tmp_path):
  def state(step):
    return TrainState(
      np.array(step, np.int32), {"w": np.full(2, step, np.float32)}, {}, ()
    )

  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state(0), {"evaluated": 0}, None)
  checkpoints.save(state(5), {"evaluated": 5}, Validation(0.5, 0.3, 0.5, 1.0, 1.0))
  checkpoints.save(state(10), {"evaluated": 5}, None)
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.best_step == 5
  checkpoints.save(state(10), {"evaluated": 10}, Validation(0.6, 0.4, 0.5, 1.0, 1.0))
  assert checkpoints.best_step == checkpoints.latest_step == 10
  restored, progress = checkpoints.restore(10, state(0))
  np.testing.assert_array_equal(restored.params["w"], 10)
  assert progress == {"evaluated": 10}
  for step in (15, 20, 25):
    checkpoints.save(
      state(step), {"evaluated": step}, Validation(0.6, 0.2, 0.5, 1.0, 1.0)
    )
  kept = sorted(
    int(p.name) for p in checkpoints.directory.iterdir() if p.name.isdigit()
  )
  assert kept == [10, 20, 25]
  checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.attack.epsilonn=0.1", "config.attack has no 'epsilonn'; it has batch_n"),
    ("--config.attack.steps=1.5", "--config.attack.steps=1.5"),
    ("--confg=3", "Unknown command line flag 'confg'"),
  ],
)
def test_bad_flags_stop_at_once_in_one_line(tmp_path, flag, message):
  result = launch(tmp_path / "run", flag)
  assert result.returncode == 1
  assert message in result.stderr.strip().splitlines()[-1]
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_impossible_value_stops_at_once_in_one_line(tmp_path):
  result = launch(tmp_path / "run", "--config.attack.epsilon=-0.1")
  assert result.returncode == 1
  assert result.stderr.strip().splitlines()[-1] == (
    "launch.py: config.attack.epsilon must be a finite number >= 0, got -0.1."
  )
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_config_s_workdir_is_refused(finished):
  workdir, _ = finished
  before = {path: path.stat().st_mtime for path in workdir.rglob("*")}
  with pytest.raises(training.ConfigError, match="another config") as error:
    training.train(small_config(seed=1), workdir)
  assert "config.seed is 0 there and 1 here" in str(error.value)
  assert {path: path.stat().st_mtime for path in workdir.rglob("*")} == before


def test_a_folder_of_other_files_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("mine")
  with pytest.raises(training.ConfigError, match="holds something other than a run"):
    training.train(small_config(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_where_the_data_lie_is_no_part_of_a_run_s_identity(tmp_path):
  config = small_config()
  with workdirs.claim_workdir(tmp_path / "run", config):
    pass
  with config.unlocked():
    config.data.data_dir = "/elsewhere"
    config.data.streaming = "never"
  with workdirs.claim_workdir(tmp_path / "run", config):
    pass
  default = workdirs.default_workdir(config, "digits")
  assert default == workdirs.default_workdir(small_config(), "digits")
  assert default != workdirs.default_workdir(small_config(seed=1), "digits")


@pytest.mark.slow
def test_not_finite_loss_stops_with_the_last_good_checkpoint(tmp_path):
  config = small_config(
    **{"optimizer.learning_rate": 1e30, "evaluation.every_epochs": 0.25}
  )
  with pytest.raises(training.TrainingError) as error:
    training.train(config, tmp_path / "run")
  message = str(error.value)
  assert "after step" in message
  good = Path(message.split("last good checkpoint is ")[1].rstrip("."))
  assert good.is_dir()
  state = parameters(tmp_path / "run")
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state["params"]))


@pytest.mark.slow
def test_report_lists_comparable_runs_beside_it(finished, tmp_path):
  workdir, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  for name, changes in {
    "other": {"method": "pgd"},
    "not-comparable": {"attack": "PGD-100"},
  }.items():
    (tmp_path / name).mkdir()
    files.write_json(tmp_path / name / "summary.json", summary | changes)
  for name, content in {
    "broken": "{",
    "array": "[1]",
    "hollow": '{"data": null}',
  }.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "summary.json").write_text(content)
  text = report.format_report(tmp_path / "this", summary)
  assert "other" in text
  assert "not-comparable" not in text
  assert not any(name in text for name in ("broken", "array", "hollow"))


def test_a_line_cut_short_is_dropped_on_resume(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "split": "train", "loss": 2.0}\n{"step": 2, "spl'
  )
  with logs.MetricLog(tmp_path, 1) as log:
    log.write(2, "train", {"loss": float("nan")})
  assert [(r["step"], r["loss"]) for r in logs.read_metrics(tmp_path)] == [
    (1, 2.0),
    (2, None),
  ]


@pytest.mark.slow
def test_a_streamed_run_is_the_run_from_memory(tmp_path, data_dir):
  summaries = []
  for streaming in ("never", "always"):
    config = small_config(
      **{"data.name": "mnist", "data.data_dir": data_dir, "data.streaming": streaming}
    )
    is_streamed = isinstance(training.load_data(config).train, StreamedDataset)
    assert is_streamed == (streaming == "always")
    summaries.append(training.train(config, tmp_path / streaming))
    del summaries[-1]["seconds"]
  assert summaries[0] == summaries[1]
  jax.tree.map(
    np.testing.assert_array_equal,
    parameters(tmp_path / "never"),
    parameters(tmp_path / "always"),
  )


@pytest.mark.slow
def test_a_run_in_a_union_of_threat_models(tmp_path, capsys):
  config = small_config(
    method="worst_restart",
    num_epochs=1.0,
    sources=("linf", "l2"),
    **{"model.normalization": "none"},
  )
  config.evaluation.norms = ("linf", "l2")
  summary = training.train(config, tmp_path / "union")
  norms = [summary["robust_accuracy_linf"], summary["robust_accuracy_l2"]]
  assert summary["robust_accuracy"] <= min(norms)
  assert "robust_accuracy_l2" in summary["last"]
  header = next(
    line for line in capsys.readouterr().out.splitlines() if "clean " in line
  )
  assert header.split() == ["clean", "robust", "linf", "l2", "confidence"]
