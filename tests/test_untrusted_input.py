"""Nothing that is read is executed, and nothing is written outside the workdir."""

import ast
import functools
import json
import os
from pathlib import Path

import jax
from matplotlib.backends import backend_agg
import numpy as np
import pytest

from ddi_jax import training
from ddi_jax.training.audit.figures import AdversarialExample, save_examples
from ddi_jax.training.run import figures
from ddi_jax.training.settings.check import check_config
from ddi_jax.training.storage.workdir import claim_workdir

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "ddi_jax").rglob("*.py")), ROOT / "launch.py"]
# Modules that build objects, or programs, from what they read.
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
CALLS = {"eval", "exec", "__import__", "compile"}


def calls_and_imports(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield (node.module or "").split(".")[0]
    elif isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name):
        yield node.func.id
      yield from (
        keyword.arg for keyword in node.keywords if keyword.arg == "allow_pickle"
      )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_builds_objects_from_files(path):
  used = set(calls_and_imports(ast.parse(path.read_text())))
  assert not used & (MODULES | CALLS | {"allow_pickle"})


def test_the_search_finds_them():
  source = "from pickle import load\nx = eval('1')\nnp.load(p, allow_pickle=True)"
  assert set(calls_and_imports(ast.parse(source))) >= {"pickle", "eval", "allow_pickle"}


def strings(section, prefix=""):
  for name, value in section.items():
    if hasattr(value, "items"):
      yield from strings(value, f"{prefix}{name}.")
    elif isinstance(value, str):
      yield prefix + name


@pytest.mark.parametrize("field", list(strings(training.default_config())))
def test_no_setting_leads_out_of_the_workdir(field):
  """Names in a config are looked up, never made into paths."""
  config = training.default_config()
  config.update_from_flattened_dict({field: "../../elsewhere"})
  with pytest.raises(training.ConfigError, match=r"must be|does not use it"):
    check_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o027])
def test_who_may_read_a_run_is_the_user_s_choice(tmp_path, mask, no_compilation_cache):
  config = training.select_variant(training.default_config(), "debug")
  config.num_epochs, config.model.name = 0.5, "mlp"
  before = os.umask(mask)
  try:
    with jax.numpy_rank_promotion("allow"):
      training.train(config, tmp_path / "run")
  finally:
    os.umask(before)
  paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
  assert {path.name for path in paths} > {"curves.png", "summary.json", "state"}
  for path in paths:
    wanted = 0o777 if path.is_dir() else 0o666
    assert path.stat().st_mode & 0o777 == wanted & ~mask, path


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  (tmp_path / "curves.png").write_bytes(b"the one before")
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 2}\n')

  image = np.ones((2, 2, 1))

  def print_half(self, path):
    Path(path).write_bytes(b"half")
    raise OSError

  monkeypatch.setattr(backend_agg.FigureCanvasAgg, "print_png", print_half)
  with pytest.raises(OSError):
    figures.save_curves(tmp_path, "title")
  with pytest.raises(OSError):
    example = AdversarialExample(image, image, "cat", "dog", 0.9, "pgd")
    save_examples(tmp_path / "curves.png", [example])
  assert (tmp_path / "curves.png").read_bytes() == b"the one before"


# Of a run of somebody else, or of a disk with faults.
NO_OBJECTS = [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"null"]


@pytest.mark.slow
@pytest.mark.parametrize("content", NO_OBJECTS)
def test_json_that_is_no_config(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  for load in (
    training.load_config,
    functools.partial(training.train, training.default_config()),
    functools.partial(training.audit_run, training.default_config()),
  ):
    with pytest.raises(training.ConfigError, match=r"config\.json (is not valid|must)"):
      load(tmp_path)


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_json_that_is_no_summary(tmp_path, content):
  config = training.default_config()
  with claim_workdir(tmp_path / "run", config):
    (tmp_path / "run" / "summary.json").write_bytes(content)
  with pytest.raises(
    training.TrainingError, match=r"summary\.json .*Delete it to make"
  ):
    training.train(config, tmp_path / "run")


def test_a_stranger_s_run_imports_nothing(tmp_path):
  """A config.json may name any function of Python as a piece."""
  config = training.default_config()
  stored = json.loads(config.to_json_best_effort())
  stored["data"]["name"] = "os:system"
  stored["data_settings"] = {"command": f"touch {tmp_path / 'executed'}"}
  (tmp_path / "config.json").write_text(json.dumps(stored))
  for load in (training.load_config, training.load_model):
    with pytest.raises(training.ConfigError, match=r"os:system.*trusted=True"):
      load(tmp_path)
  assert not (tmp_path / "executed").exists()
