"""What is wrong with --config is said in one or two sentences, not in a traceback."""

import importlib.util
from pathlib import Path
import subprocess
import sys

from absl import flags
from forked_programs import run_program
import pytest

ROOT = Path(__file__).parents[3]
# Of ml_collections, which loads the file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
GOOD = "from ddi_jax import training\n\ndef get_config(variant='full'):\n"


@pytest.fixture(scope="module")
def launch():
  """The program's file as a module; absl knows a flag once only."""
  spec = importlib.util.spec_from_file_location("launch", ROOT / "launch.py")
  module = importlib.util.module_from_spec(spec)
  # Other tests of this process may have imported experiments with the same flags.
  find_module = flags.FLAGS.find_module_defining_flag
  others = [
    name for name in flags.FLAGS if find_module(name, "").startswith("experiments")
  ]
  kept = {name: flags.FLAGS[name] for name in others}
  for name in kept:
    delattr(flags.FLAGS, name)
  defined = set(flags.FLAGS)
  spec.loader.exec_module(module)
  yield module
  for name in set(flags.FLAGS) - defined:
    delattr(flags.FLAGS, name)
  for name, flag in kept.items():
    flags.FLAGS[name] = flag


def refusal(launch, monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
  monkeypatch.chdir(ROOT)
  monkeypatch.delitem(sys.modules, "config_config", raising=False)  # The last file.
  with pytest.raises(SystemExit) as error:
    launch._parse_flags(sys.argv)
  message = error.value.code
  assert message.startswith("launch.py: ")
  assert len(message.splitlines()) == 1
  return message


@pytest.mark.parametrize(
  ("arguments", "given"),
  [
    (["--config=configs/digit.py"], "'configs/digit.py', which is a file that does"),
    (["--config", "configs/digit.py:debug"], "'configs/digit.py:debug', which"),
    (["-config=nowhere/digits"], "'nowhere/digits', which is a file that does not"),
    (["--config=configs"], "'configs', which is a folder"),
    (["--config="], "'', which is a folder"),
    ([], "none"),
  ],
)
def test_a_config_that_is_not_there(launch, monkeypatch, arguments, given):
  message = refusal(launch, monkeypatch, *arguments)
  assert f"must be a config file, FILE.py or FILE.py:VARIANT; got {given}" in message
  assert "configs/cifar10.py, configs/cifar10_small.py" in message
  like = "digits" if "digit" in given else "cifar10"
  assert f"write --config=configs/{like}.py" in message


def test_another_folder_s_configs_are_named(launch, monkeypatch, tmp_path):
  (tmp_path / "mine.py").write_text(GOOD)
  message = refusal(launch, monkeypatch, f"--config={tmp_path / 'min.py'}")
  assert f"There are {tmp_path / 'mine.py'}: write" in message


@pytest.mark.parametrize(
  ("content", "fault"),
  [
    ("def get_config(:\n", "line 1 raises SyntaxError (invalid syntax)"),
    ("import nowhere_at_all\n", "line 1 raises ModuleNotFoundError (No module"),
    (f"{GOOD}  return 1 / 0\n", "line 4 raises ZeroDivisionError (division by zero)"),
    (
      f"{GOOD}  c = training.default_config()\n  c.attack.epsilonn = 1.0\n",
      """Did you mean "epsilon" instead of "epsilonn"?""",
    ),
    ("x = open('nothing')\n", "No such file or directory: 'nothing'"),
    ("x = 1\n", "it must define get_config(variant), which returns"),
    (f"{GOOD}  return None\n", "it must define get_config(variant), which returns"),
    ("def get_config(v):\n  return v\n", "it must define get_config(variant)"),
  ],
)
def test_a_config_file_that_fails(launch, monkeypatch, tmp_path, content, fault):
  path = tmp_path / "mine.py"
  path.write_text(content)
  message = refusal(launch, monkeypatch, f"--config={path}")
  assert str(path) in message
  assert fault in message
  assert len(message) < 500


def test_a_variant_that_is_not_there(launch, monkeypatch):
  assert refusal(launch, monkeypatch, "--config=configs/digits.py:debgu") == (
    "launch.py: configs/digits.py: the config's variant must be full or debug, got "
    "'debgu'."
  )


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.atack.steps=3", "config has no 'atack'; it has attack, batch_size"),
    ("--config.attack.step=3", "Did you mean --config.attack.steps?"),
    ("-config.attack.step=3", "Did you mean --config.attack.steps?"),
    ("--noconfig.data.flap", "Did you mean --config.data.flip?"),
    ("--config.seed.x=1", "config.seed has no 'x'; it has no fields."),
    ("--config.model_settings.x=1", "in the config file: config.model_settings.x ="),
  ],
)
def test_a_misspelt_setting(launch, monkeypatch, flag, message):
  assert message in refusal(launch, monkeypatch, "--config=configs/digits.py", flag)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("program", "kind"),
  [
    *(("launch.py", kind) for kind in ("missing", "folder", "nested", "binary")),
    ("experiments/worst_class.py", "missing"),
  ],
)
def test_a_flagfile_that_cannot_be_read(tmp_path, program, kind):
  paths = {name: tmp_path / name for name in ("missing", "nested", "binary")}
  paths["folder"] = tmp_path
  paths["nested"].write_text(f"--flagfile={paths['missing']}\n")
  paths["binary"].write_bytes(b"\xff\xfe\x00")
  result = run_program([program, f"--flagfile={paths[kind]}"], ROOT)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  name = Path(program).name
  assert line.startswith(f"{name}: --flagfile must be a text file with a flag on each")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "jaxlib._jax", "flax", "digits"])
def test_ctrl_c_before_the_run_is_one_line(module):
  """While a module is imported, also one in C++; the last is the config file."""
  code = f"""
import os, runpy, signal, sys
def interrupt(event, arguments):
  if event in ("import", "open") and "{module}" in str(arguments[0]):
    os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
sys.argv = ["launch.py", "--config=configs/digits.py"]
runpy.run_path("launch.py", run_name="__main__")
"""
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
  )
  assert result.returncode == 130
  (line,) = result.stderr.split("\n")[1:-1]
  assert line.startswith("launch.py: stopped")


@pytest.mark.slow
def test_a_refusal_waits_for_no_heavy_module(tmp_path):
  """What only training needs is imported after the settings are checked."""
  code = f"""
import runpy, sys
sys.argv = [
  "launch.py", "--config=configs/digits.py", "--config.num_restarts=1000000",
  "--workdir={tmp_path}"
]
try:
  runpy.run_path("launch.py", run_name="__main__")
except SystemExit as error:
  print(error)
heavy = "matplotlib grain orbax.checkpoint tensorstore sklearn.datasets PIL scipy"
print([name for name in heavy.split() if name in sys.modules])
"""
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
  )
  message, imported = result.stdout.splitlines()
  assert message.startswith("launch.py: a training step needs at least"), result.stderr
  assert imported == "[]"
