"""A release: what is in its wheel, and that the wheel works without the tree."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import ddi_jax

ROOT = Path(__file__).parents[1]
NOT_COPIED = shutil.ignore_patterns(
  *(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "_build", "shared")
)


def run(*command, **options):
  result = subprocess.run(
    [sys.executable, *map(str, command)],
    capture_output=True,
    text=True,
    check=False,
    **options,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel that `python -m build` makes of a copy of the tree."""
  folder = tmp_path_factory.mktemp("release")
  requirement = "setuptools>=77"  # The build downloads it, as pyproject.toml says.
  download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest"]
  if subprocess.run([*download, folder, requirement], check=False).returncode != 0:
    pytest.skip(f"{requirement}, which the build needs, cannot be downloaded")
  shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
  run("-m", "build", "--outdir", folder, folder / "tree")
  (path,) = folder.glob("ddi_jax-*.whl")
  return path


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  information = f"ddi_jax-{ddi_jax.__version__}.dist-info"
  package = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "ddi_jax").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
  }
  assert "ddi_jax/py.typed" in package
  assert {name for name in names if not name.startswith(information)} == package
  assert {name.removeprefix(information) for name in names - package} == {
    *("/METADATA", "/RECORD", "/WHEEL", "/top_level.txt", "/licenses/LICENSE")
  }


@pytest.mark.slow
def test_the_quick_start_runs_on_the_wheel(wheel, tmp_path):
  """Elsewhere than in the tree, with the wheel's files and without PYTHONPATH."""
  site = tmp_path / "site"
  run("-m", "pip", "install", "--no-deps", "--target", site, wheel)
  readme = (ROOT / "README.md").read_text()
  own_loop = readme.split("## Train a robust network")[1]
  quick_start = re.search(r"```python\n(.*?)```", own_loop, re.DOTALL).group(1)
  # Before the tree's own installation, if there is one.
  program = f"import sys\nsys.path.insert(0, {str(site)!r})\n" + quick_start
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  printed = run(
    *("-c", program + "print(ddi_jax.__file__)"), cwd=tmp_path, env=environment
  )
  robust_loss, cosine = map(float, printed.splitlines()[-2].split())
  assert 0 < robust_loss < 2
  assert -1 <= cosine <= 1
  assert Path(printed.splitlines()[-1]) == site / "ddi_jax" / "__init__.py"
