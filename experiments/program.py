"""The command line of the experiments: flags, stages and tables.

  python -m experiments.NAME --config=experiments/configs/NAME.py --data_dir=DIR

To spread the runs over a cluster's array, or several shells with the same folder:

  python -m experiments.NAME ... --list > names.txt
  xargs -P 8 -I{} python -m experiments.NAME ... --run={} < names.txt
"""

from collections.abc import Callable, Iterator
import json
from pathlib import Path
import runpy
import sys
from typing import Any

from absl import app, flags
import ml_collections
import pandas as pd

from ddi_jax import training
from ddi_jax.training.run import report
from ddi_jax.training.settings import command_line
from experiments import sweep

_PROGRAM = Path(sys.argv[0]).name
_CONFIG = command_line.define_config_flag(
  _PROGRAM, "experiments/configs/NAME.py or .../NAME.py:BUDGET."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of TFDS' data sets.")
_FOLDER = flags.DEFINE_string("folder", "runs/experiments", "Folder of all runs.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of tables; by default --folder.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at a time.", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Print the names of the next runs to make.")
_TABLES = flags.DEFINE_bool("tables", False, "Make no run; tabulate finished runs.")
_RUN = flags.DEFINE_string("run", None, "Make only the run with this name.")

# (config, folder) -> the stages' runs; a stage may depend on the results of the former.
Stages = Callable[[ml_collections.ConfigDict, Path], Iterator[sweep.Runs]]
# (finished runs, folder) -> tables by name.
Tables = Callable[[sweep.Runs, Path], dict[str, pd.DataFrame]]


def main(task: sweep.Task, stages: Stages, tables: Tables) -> None:
  """Run an experiment's command.

  Args:
    task: see `sweep.run_all`.
    stages: the runs in stages.  A stage begins when the stages before it are finished.
    tables: the tables, written to `--output` as CSV files whose names start with
      `config.name`.
  """

  def run(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    sweep.describe_provenance()
    config, folder = _CONFIG.value, Path(_FOLDER.value)
    for settings in config.training.values():
      if settings.data.name != "digits":  # The digits come with scikit-learn.
        settings.data.data_dir = _DATA_DIR.value
    runs: dict[str, sweep.Run] = {}
    failures: dict[str, str] = {}
    for stage in stages(config, folder):
      runs.update(stage)
      if _LIST.value:
        names = sweep.unfinished(stage, folder)
        if names:
          print("\n".join(names))
          return
        continue
      if _RUN.value is not None:
        if _RUN.value in stage:
          only = {_RUN.value: stage[_RUN.value]}
          sweep.exit_with(sweep.run_all(task, only, folder), folder)
          return
        continue
      if not _TABLES.value:
        failures |= sweep.run_all(task, stage, folder, jobs=_JOBS.value)
    if _RUN.value is not None:
      sys.exit(f"--run: no run {_RUN.value!r}; --list prints the names.")
    if _LIST.value:
      return
    output = Path(_OUTPUT.value) if _OUTPUT.value else folder
    finished = sweep.finished(runs, folder)
    if finished:
      write_tables(tables(finished, folder), config.name, output)
    sweep.exit_with(failures, folder)

  def run_until_interrupted(argv: list[str]) -> None:
    try:
      run(argv)
    except KeyboardInterrupt:
      sys.exit("Interrupted; the same command resumes.")

  app.run(run_until_interrupted, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
  configs = Path(__file__).parent / "configs"
  return command_line.parse_flags(argv, _PROGRAM, configs, _execute)


def _execute(given: str) -> ml_collections.ConfigDict:
  """The config of FILE or FILE:BUDGET."""
  path, *budget = given.split(":", maxsplit=1)
  config: ml_collections.ConfigDict = runpy.run_path(path)["get_config"](*budget)
  return config


def write_tables(tables: dict[str, pd.DataFrame], name: str, output: Path) -> None:
  """Write tables to files `NAME-TABLE.csv`."""
  output.mkdir(parents=True, exist_ok=True)
  for title, table in tables.items():
    path = output / f"{name}-{title}.csv"
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print(f"{path}: {len(table)} rows.")


def runs_table(runs: sweep.Runs, folder: Path) -> pd.DataFrame:
  """A table with one row per run: its settings, results and provenance.

  The column `config` has all settings that differ from `default_config()`, as JSON.
  """
  return pd.DataFrame(
    [
      {
        "run": name,
        "setting": setting,
        "method": config.method,
        "unit_norm": config.unit_norm,
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        **_results(folder / name),
        **sweep.read_provenance(folder / name),
        "config": json.dumps(_changes(config)),
      }
      for name, (setting, config) in runs.items()
    ]
  )


def _results(folder: Path) -> dict[str, Any]:
  """The numbers in a run's summary, on the test set if the run has test results."""
  summary = json.loads((folder / report.SUMMARY_FILE).read_text())
  names = ("steps", "seconds", "clean_accuracy", "robust_accuracy", "mean_confidence")
  return {name: summary[name] for name in names if name in summary}


def _changes(config: ml_collections.ConfigDict) -> dict[str, Any]:
  default = pd.json_normalize(training.default_config().to_dict()).to_dict("records")[0]
  settings = pd.json_normalize(config.to_dict()).to_dict("records")[0]
  return {
    name: value
    for name, value in settings.items()
    if name != "data.data_dir" and (name not in default or value != default[name])
  }
