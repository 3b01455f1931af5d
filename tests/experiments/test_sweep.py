"""What is finished stays, what fails is told, the rest goes on."""

import json
import math

import jax
import pytest

from ddi_jax import training
from ddi_jax.training.devices import compilation
from ddi_jax.training.storage import files
from experiments import early_training, program, sweep


def runs_with_seeds(*seeds):
  def config_of(seed):
    config = training.default_config()
    config.seed = seed
    return config

  return sweep.named(sweep.Run("digits", config_of(seed)) for seed in seeds)


def name_of(runs, seed):
  (name,) = (name for name, run in runs.items() if run.config.seed == seed)
  return name


@pytest.fixture
def task():
  """A task that works at once and remembers its seeds; some fail or are interrupted."""

  def work(config, workdir):
    work.seeds.append(config.seed)
    print("at work")
    if config.seed in work.failing:
      raise training.TrainingError("loss is nan")
    if config.seed in work.interrupted:
      return None
    workdir.mkdir(exist_ok=True)
    summary = {"steps": 4, "seconds": 1.0, "robust_accuracy": 0.5}
    files.write_json(workdir / "summary.json", summary)
    return summary

  work.seeds, work.failing, work.interrupted = [], set(), set()
  return work


def test_a_finished_run_is_not_made_again(tmp_path, task):
  assert sweep.run_all(task, runs_with_seeds(0, 1), tmp_path) == {}
  runs = runs_with_seeds(0, 1, 2)
  assert len(sweep.unfinished(runs, tmp_path)) == 1
  assert sweep.run_all(task, runs, tmp_path) == {}
  assert task.seeds == [0, 1, 2]
  assert sweep.finished(runs, tmp_path) == runs


@pytest.mark.usefixtures("no_compilation_cache")
def test_runs_share_a_cache_of_programs_and_leave_the_user_s(tmp_path, task):
  caches = []

  def note_cache(config, workdir):
    caches.append(jax.config.jax_compilation_cache_dir)
    return task(config, workdir)

  sweep.run_all(note_cache, runs_with_seeds(0, 1), tmp_path)
  assert caches == [str(tmp_path / compilation.FOLDER)] * 2
  assert jax.config.jax_compilation_cache_dir is None


def test_a_failure_is_told_and_stops_no_other(tmp_path, task, capsys):
  runs = runs_with_seeds(0, 1, 2)
  task.failing = {1}
  failed = name_of(runs, 1)
  failures = sweep.run_all(task, runs, tmp_path)
  assert failures == {failed: "TrainingError: loss is nan"}
  assert task.seeds == [0, 1, 2]
  assert failed not in sweep.finished(runs, tmp_path)
  log = (tmp_path / "logs" / f"{failed}.txt").read_text()
  assert log.startswith("at work") and "Traceback" in log
  shown = capsys.readouterr().out
  assert "at work" not in shown and "FAILED: TrainingError: loss is nan" in shown
  with pytest.raises(SystemExit, match="1 runs have failed"):
    sweep.exit_with(failures, tmp_path)
  task.failing = set()  # The cause is mended.
  assert sweep.run_all(task, runs, tmp_path) == {}
  assert task.seeds == [0, 1, 2, 1]
  sweep.exit_with({}, tmp_path)  # Returns.


def test_an_interrupted_sweep_goes_on(tmp_path, task):
  runs = runs_with_seeds(0, 1, 2)
  task.interrupted = {1}
  with pytest.raises(KeyboardInterrupt):
    sweep.run_all(task, runs, tmp_path)
  assert task.seeds == [0, 1]
  task.interrupted = set()
  assert sweep.run_all(task, runs, tmp_path) == {}
  assert task.seeds == [0, 1, 1, 2]


def test_runs_of_other_settings_have_other_names():
  first, second = runs_with_seeds(0), runs_with_seeds(0)
  assert list(first) == list(second)
  second["other"] = second.pop(next(iter(second)))
  second["other"].config.batch_size = 7
  renamed = sweep.named(second.values())
  assert not first.keys() & renamed.keys()


def test_the_table_of_runs_says_where_they_come_from(tmp_path, task):
  runs = runs_with_seeds(0, 3)
  sweep.run_all(task, runs, tmp_path)
  program.write_tables({"runs": program.runs_table(runs, tmp_path)}, "trial", tmp_path)
  header, first, second = (tmp_path / "trial-runs.csv").read_text().splitlines()
  columns = {"run", "setting", "method", "unit_norm", "learning_rate", "seed"}
  columns |= {"commit", "machine", "versions", "date", "config", "robust_accuracy"}
  assert columns <= set(header.split(","))
  provenance = sweep.describe_provenance()
  assert f"jax {jax.__version__}" in provenance["versions"]
  assert all(value in first for value in (provenance["commit"], provenance["machine"]))
  assert '"{""seed"": 3}"' in second  # All that differs from the defaults.


def test_curves_count_epochs_and_gradients(tmp_path):
  config = training.default_config()
  config.method, config.num_restarts, config.batch_size = "danskin", 3, 10
  config.attack.steps, config.num_epochs = 5, 2.0
  run = sweep.Run("digits", config)
  (name,) = runs = sweep.named([run])
  folder = tmp_path / name
  folder.mkdir()
  (folder / "summary.json").write_text(json.dumps({"steps": 4}))
  tested = {"robust_accuracy": 0.5, "clean_accuracy": 0.9, "mean_confidence": 0.7}
  fields = ("cosine", "min_cosine", "relative_norm", "support")
  trained = {f"direction/{field}": 1.0 for field in fields}
  records = [
    {"step": 0, "split": "validation", **tested},
    {"step": 1, "split": "train", **trained},
    {"step": 2, "split": "train", **trained, "direction/cosine": 0.5},
    {"step": 2, "split": "validation", **tested, "robust_accuracy": 0.6},
  ]
  lines = "".join(json.dumps(record) + "\n" for record in records)
  (folder / "metrics.jsonl").write_text(lines)
  before, after = early_training.curves_table(runs, tmp_path).to_dict("records")
  assert (before["epoch"], before["gradient_evaluations"]) == (0, 0)
  assert math.isnan(before["cosine"])
  assert after["epoch"] == 1.0  # 2 steps of 4, of 2 epochs.
  assert after["gradient_evaluations"] == 2 * 10 * (3 * 5 + 3)
  assert (after["robust_accuracy"], after["cosine"]) == (0.6, 0.75)
  assert (after["arm"], after["setting"]) == ("danskin", "digits")


@pytest.mark.parametrize(
  ("method", "expected"),
  [("standard", 1), ("pgd", 6), ("average", 18), ("worst_restart", 16)],
)
def test_gradient_evaluations_of_a_step(method, expected):
  config = training.default_config()
  config.method, config.num_restarts, config.attack.steps = method, 3, 5
  assert early_training.gradient_evaluations(config) == expected
