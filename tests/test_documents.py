"""The documents are complete; their examples are run by the conftest.py at the root."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

import ddi_jax
from ddi_jax import candidates

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("module", [ddi_jax, ddi_jax.attacks, candidates])
def test_the_api_reference_names_all_that_is_public(module):
  pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.rst"))
  documented = set(
    re.findall(r"auto(?:function|class|data|module|exception):: ([\w.]+)", pages)
  )
  documented = {name.removeprefix("ddi_jax.") for name in documented}
  assert set(module.__all__) <= documented


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_outputs_of_one_run_from_top_to_bottom(path):
  cells = json.loads(path.read_text())["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell["outputs"]]
  assert not [output for output in outputs if output["output_type"] == "error"]
  assert any("image/png" in output.get("data", {}) for output in outputs)
  assert "%pip install" in "".join(code[0]["source"])
  assert not code[0]["outputs"]  # Nothing to install where it ran.


def test_the_changelog_names_the_version_and_its_date():
  changelog = (ROOT / "CHANGELOG.md").read_text()
  version = re.escape(ddi_jax.__version__)
  assert re.search(rf"^## {version} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
  # The version stands in one place.
  assert not re.search("^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_pre_commit_runs_the_linters_of_ci():
  hooks = (ROOT / ".pre-commit-config.yaml").read_text()
  entries = re.findall("entry: (.*)", hooks)
  commands = (ROOT / ".ci" / "run").read_text().splitlines()
  assert entries == [
    line for line in commands if line.split()[:1] in (["ruff"], ["mypy"])
  ]


@pytest.mark.slow
def test_the_several_devices_how_to_on_four(monkeypatch):
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
  monkeypatch.setenv("XLA_FLAGS", flags)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  page = "docs/howto/devices.md"
  command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=0", page]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stdout
