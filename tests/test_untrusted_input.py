"""Nothing that is read is executed, and nothing is written outside the workdir."""

import ast
import json
from pathlib import Path

import pytest

from ddi_jax import training
from ddi_jax.training.settings.check import check_config

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
