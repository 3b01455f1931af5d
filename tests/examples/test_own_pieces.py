"""Pieces from outside the package, through the training program to its end."""

import json
from pathlib import Path

from forked_programs import run_program
from interrupted_runs import train_in_parts
import pytest

from ddi_jax import training

ROOT = Path(__file__).parents[2]
OWN = "examples.own_pieces"
SETTINGS = {
  "batch_size": 32,
  "num_epochs": 2.0,
  "data.validation_size": 100,
  "evaluation.steps": 2,
  "optimizer.learning_rate": 0.1,
}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  """As in the repository's folder, in which the examples are to be run."""
  monkeypatch.syspath_prepend(str(ROOT))


def launch(workdir, *extra, fresh=False, **changes):
  settings = SETTINGS | changes
  return run_program(
    [
      *("launch.py", "--config=configs/digits.py", f"--workdir={workdir}"),
      *(f"--config.{name}={value}" for name, value in settings.items()),
      *extra,
    ],
    ROOT,
    fresh=fresh,
  )


@pytest.mark.slow
def test_all_own_pieces_train_resume_and_are_evaluated(tmp_path, capsys):
  workdir = tmp_path / "run"
  changes = {
    "method": f"{OWN}:median_direction",
    "sources": f"('{OWN}:noisy_fgsm:3',)",
    "model.name": f"{OWN}:Network",
    "data.name": f"{OWN}:load_stripes",
    "num_epochs": 10.0,
  }
  result = launch(workdir, **changes)
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["method"] == changes["method"]
  assert summary["clean_accuracy"] > 0.5  # Chance is a third.
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  config = training.load_config(workdir, trusted=True)
  assert training.train(config, workdir) == summary
  assert "complete; nothing to do" in capsys.readouterr().out
  model = training.load_model(workdir, trusted=True)
  assert type(model).__name__ == "Network"
  flags = ("--evaluate=apgd-ce", "--evaluate_epsilons=0.1")
  result = launch(workdir, *flags, fresh=True, **changes)
  assert result.returncode == 0, result.stderr
  assert "apgd-ce" in result.stdout


def config_of(**changes):
  config = training.default_config()
  config.update_from_flattened_dict(
    SETTINGS | {"model.width": 2, "attack.steps": 2, "num_restarts": 2} | changes
  )
  return training.drop_unused(config, keep=changes)


@pytest.mark.slow
def test_a_run_with_an_own_direction_is_interrupted_and_resumed(tmp_path, monkeypatch):
  config = config_of(method=f"{OWN}:median_direction", **{"data.limit": 64})
  whole = training.train(config, tmp_path / "whole")
  parts = train_in_parts(config, tmp_path / "parts", monkeypatch)
  for summary in (whole, parts):
    del summary["seconds"]
  assert parts == whole


@pytest.mark.slow
def test_settings_of_own_pieces(tmp_path):
  config = config_of(
    method=f"{OWN}:softmax_direction",
    unit_norm=True,
    num_epochs=0.5,
    **{"data.limit": 64},
  )
  config.method_settings.temperature = 0.1
  training.check_config(config)
  assert training.train(config, tmp_path / "run")["steps"] == 1
  metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
  assert '"direction/cosine"' in metrics  # The state of ddi_jax.weighted_direction.
  stored = training.load_config(tmp_path / "run", trusted=True)
  assert stored.method_settings.temperature == 0.1
  config.method_settings.temperature = -1.0
  with pytest.raises(
    training.ConfigError, match=r"config\.method_settings\.temperature must be > 0"
  ):
    training.check_config(config)
  config.method_settings.temprature = 1.0
  with pytest.raises(
    training.ConfigError, match="temprature is not a setting of softmax_direction"
  ):
    training.check_config(config)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no_tuple", "must return"),
    ("floats", "images uint8"),
    ("few", "labels, integers"),
  ],
)
def test_an_own_data_set_of_another_form_is_refused(
  tmp_path, monkeypatch, name, message
):
  (tmp_path / "bad_data.py").write_text(
    "import numpy as np\n"
    "images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.zeros(20, int)\n"
    "def no_tuple(): return images\n"
    "def floats(): return images / 1.0, labels, images, labels\n"
    "def few(): return images, labels[:3], images, labels\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  config = config_of(**{"data.name": f"bad_data:{name}"})
  with pytest.raises(training.ConfigError, match=rf"config\.data\.name .*{message}"):
    training.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
