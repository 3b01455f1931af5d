"""Settings and fixtures shared by all tests."""

from importlib import metadata
import importlib.util
import os
from pathlib import Path
import signal
import tempfile

import hypothesis
import pytest

# Compilation is most of the time that the tests take, and many compile the same.  All
# processes of a session share one cache, which holds all programs, even those of one
# operation.  jax reads the variables when it is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="ddi_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Most programs of the tests run for less time than they compile.  Set it to 0 to test
# them as users compile them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and (
  os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.util.find_spec("libtpu")
):
  # Two passes take half of the tests' compile time for nested loops.
  _FLAGS = (
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion,simplify-while-loops"
  )
  # XLA's older code generator compiles in a third of the time, and faster in one part
  # than in several.  Compilers that do not know a flag end the process: those of jaxlib
  # from 0.11 on, and libtpu.
  if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _FLAGS += (
      " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
  os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import jax
from jax.experimental.compilation_cache import compilation_cache
from shapes import checked, has_shapes

import ddi_jax
from ddi_jax import losses

# The first example compiles, which takes as long as it takes.  The examples are the
# same in every run, so that a failure is due to a change;
# `--hypothesis-profile=search` draws new ones.
hypothesis.settings.register_profile("search", deadline=None, max_examples=300)
hypothesis.settings.register_profile(
  "tests", deadline=None, max_examples=60, derandomize=True
)
hypothesis.settings.load_profile("tests")

# A program that is started in the background ignores these signals, and so do its
# children.  The programs that the tests start must not ignore them; this process does.
for _number in (signal.SIGINT, signal.SIGHUP):
  if signal.getsignal(_number) == signal.SIG_IGN:
    signal.signal(_number, lambda *_: None)


# Whoever calls a public function by its name in `ddi_jax` has its shapes checked.
for _module, _names in ((ddi_jax, ddi_jax.__all__), (losses, dir(losses))):
  for _name in _names:
    if has_shapes(getattr(_module, _name)) and not isinstance(
      getattr(_module, _name), type
    ):
      setattr(_module, _name, checked(getattr(_module, _name)))


# Each takes more than half a minute.  A file is one worker's: these come first, so that
# no worker is left with one of them in the end.
LONGEST = (
  *("minimax/test_minimize_max.py", "training/run/test_program.py"),
  *("training/run/test_faults.py", "training/run/test_random_configs.py"),
  *("training/step/test_train_step.py", "training/devices/test_processes.py"),
  *("training/devices/test_mesh.py", "training/run/test_library_networks.py"),
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: not str(item.path).endswith(LONGEST))
  for item in items:
    trains = isinstance(item, pytest.DoctestItem) and "training" in item.path.parts
    if item.path.suffix == ".md" or trains:
      item.add_marker("slow")


@pytest.fixture(autouse=True)
def strict_rank_promotion(request):
  """In the core, arrays of different rank meet only where it is written so."""
  folders = [
    Path(__file__).parent / name
    for name in ("models", "data", "training", "experiments", "examples")
  ]
  below_core = any(folder in request.path.parents for folder in folders)
  with jax.numpy_rank_promotion("allow" if below_core else "raise"):
    yield


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
  """After each file: a process may hold 65,530 mappings, a few for every program."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def settings_are_left_alone():
  """Each file must restore them: the next files of this process use them too."""
  before = _settings()
  yield
  changed = before.items() ^ _settings().items()
  assert not changed, f"not restored: {sorted(changed, key=str)}"


def _settings():
  environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
  return {k: str(v) for k, v in jax.config.values.items()} | environment


@pytest.fixture(scope="session")
def data_dir() -> str:
  """A TFDS data directory with mnist and cifar10, where there is one."""
  default = Path(__file__).parents[2] / "shared" / "data" / "tfds"
  folder = Path(os.environ.get("TFDS_DATA_DIR", default))
  for name in ("mnist", "cifar10"):
    if not (folder / name).is_dir():
      pytest.skip(f"no prepared {name} in {folder} (set TFDS_DATA_DIR)")
  return str(folder)


@pytest.fixture
def no_compilation_cache():
  """As where the user has set none."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


@pytest.fixture
def x64():
  """Double precision for the duration of a test."""
  with jax.enable_x64(True):
    yield
