"""The package is laid out as docs/architecture.md says."""

import ast
import importlib
from pathlib import Path
import pkgutil

import pytest

import ddi_jax

PACKAGE = Path(ddi_jax.__file__).parent
MODULES = [
  module.name for module in pkgutil.walk_packages(ddi_jax.__path__, "ddi_jax.")
]
FILES = sorted(PACKAGE.rglob("*.py"))
# From below to above: a file imports from its own place and from those before it.
LAYERS = (
  ("checks", "numerics", "records", "reuse", "tables"),
  ("losses", "threat_models"),
  ("attacks",),
  ("candidates",),
  ("gradients",),
  ("directions",),
  ("minimax",),
  ("evaluation",),
  ("models",),
  ("data",),
  ("training",),
)
# Likewise below `ddi_jax.training`.
TRAINING_LAYERS = ("settings", "devices", "step", "storage", "run", "audit")
CORE = {name for layer in LAYERS[:8] for name in layer}
CORE_PACKAGES = {"jax", "numpy", "optax", "chex", "ddi_jax"}
STANDARD = {
  *("__future__", "collections", "copy", "enum", "functools", "hashlib", "html"),
  *("importlib", "inspect"),
  *("math", "numbers", "operator", "re", "statistics", "types", "typing", "warnings"),
}


def place_of(path):
  """The folder or the module just below `ddi_jax` that a file belongs to."""
  first = path.relative_to(PACKAGE).parts[0]
  return first.removesuffix(".py")


def imports_of(path):
  """Dotted names that a file imports; what is imported for types only is left out."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
      node.body = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      if node.module == "ddi_jax":
        yield from (f"ddi_jax.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_shares_its_name_with_a_public_object(name):
  module = importlib.import_module(name)
  parent, _, last = name.rpartition(".")
  assert getattr(importlib.import_module(parent), last) is module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
  place = place_of(path)
  imported = set(imports_of(path))
  if place in CORE:
    roots = {name.split(".")[0] for name in imported}
    assert roots <= CORE_PACKAGES | STANDARD
  if place in ("__init__", "training"):
    return
  level = next(i for i, layer in enumerate(LAYERS) if place in layer)
  allowed = {name for layer in LAYERS[: level + 1] for name in layer}
  places = {name.split(".")[1] for name in imported if name.startswith("ddi_jax.")}
  assert places <= allowed


@pytest.mark.parametrize(("level", "folder"), list(enumerate(TRAINING_LAYERS)))
def test_imports_within_training_go_downwards(level, folder):
  allowed = set(TRAINING_LAYERS[: level + 1])
  prefix = "ddi_jax.training."
  for path in (PACKAGE / "training" / folder).glob("*.py"):
    imported = [name for name in imports_of(path) if name.startswith(prefix[:-1])]
    assert {name.removeprefix(prefix).split(".")[0] for name in imported} <= allowed


def test_every_place_has_a_layer():
  assert {place_of(path) for path in FILES} == {
    "__init__",
    *(name for layer in LAYERS for name in layer),
  }
  within = {path.name for path in (PACKAGE / "training").iterdir() if path.is_dir()}
  assert within - {"__pycache__"} == set(TRAINING_LAYERS)


def test_folders_are_small():
  for folder in {path.parent for path in FILES}:
    assert len(list(folder.glob("*.py"))) <= 14, folder


def test_tests_mirror_the_package():
  tests = Path(__file__).parent
  folders = {path.parent.relative_to(PACKAGE) for path in FILES} - {Path()}
  convolution = Path("models/convolution")  # One function, tested in one file.
  for folder in folders - {convolution}:
    assert (tests / folder).is_dir(), folder
