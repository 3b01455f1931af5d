"""Programs in processes of their own, most of which need not import JAX again.

The imports take seconds.  Python's fork server does them once for each worker of
pytest, and a program is then a fork of it, with its own process number, signals, exit
status and output.  The forks of a server have the same hash seed, their imports cannot
fail, and JAX's own variables of the environment keep the values that they had when the
server started.  Where this matters, `fresh=True` starts Python anew.
"""

import atexit
import multiprocessing
import os
from pathlib import Path
import runpy
import shutil
import signal
import sys
import tempfile
import time

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
  [
    *("ddi_jax.training.run.program", "ddi_jax.training.audit.program"),
    *("ml_collections.config_flags", "grain.python", "orbax.checkpoint"),
    *("tensorboardX", "matplotlib.backends.backend_agg"),
  ]
)


class Program:
  """A running Python program, much like `subprocess.Popen`."""

  def __init__(self, arguments, cwd, env=None, *, fresh=False):
    """Starts it.

    Args:
      arguments: those of Python: a file, or "-m" and a module; then the program's.
      cwd: the folder to start it in.
      env: its environment; by default this process's.
      fresh: whether to start Python anew.
    """
    self._folder = Path(tempfile.mkdtemp(prefix="ddi_jax_tests_"))
    for path in self._outputs:
      path.touch()
    self._process = _FORKS.Process(
      target=_run,
      args=([*map(str, arguments)], cwd, env or {**os.environ}, self._outputs, fresh),
    )
    self._process.start()
    self.pid = self._process.pid
    atexit.register(self._leave_nothing)

  @property
  def _outputs(self):
    return [self._folder / name for name in ("stdout", "stderr")]

  @property
  def returncode(self):
    """None while it runs; -N after signal N."""
    return self._process.exitcode

  @property
  def stdout(self):
    """What it has printed until now."""
    return self._outputs[0].read_text()

  @property
  def stderr(self):
    """What it has printed there until now."""
    return self._outputs[1].read_text()

  def send_signal(self, number):
    if self.returncode is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)

  def wait(self, timeout=None):
    """Waits until it ends, and fails if that takes more than `timeout` seconds."""
    self._process.join(timeout)
    if self.returncode is None:
      self._fail(f"it still runs after {timeout} seconds")
    return self

  def wait_until(self, condition, timeout=300):
    """Waits until `condition()` is true, and fails if the program ends first."""
    deadline = time.monotonic() + timeout
    while True:
      status = self.returncode
      if condition():
        return
      if status is not None:
        self._fail(f"it ended with status {status} too early")
      if time.monotonic() > deadline:
        self._fail(f"it did not get there in {timeout} seconds")
      time.sleep(0.01)

  def _fail(self, reason):
    raise AssertionError(f"{reason}: {self.stdout}{self.stderr}")

  def _leave_nothing(self):
    self.kill()
    shutil.rmtree(self._folder)


def run_program(arguments, cwd, *, fresh=False):
  """Runs a program to its end."""
  program = Program(arguments, cwd, fresh=fresh)
  try:
    return program.wait()
  finally:
    program.kill()


def _run(arguments, cwd, env, outputs, fresh):
  for number, path in enumerate(outputs, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
  os.chdir(cwd)
  if fresh:
    unbuffered = {**env, "PYTHONUNBUFFERED": "1"}
    os.execve(sys.executable, [sys.executable, *arguments], unbuffered)
  sys.stdout = open(1, "w", buffering=1, closefd=False)
  sys.stderr = open(2, "w", buffering=1, closefd=False)
  os.environ.clear()
  os.environ.update(env)
  try:
    if arguments[0] == "-m":
      sys.path.insert(0, str(cwd))
      sys.argv = arguments[1:]
      runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
      sys.path.insert(0, str(Path(arguments[0]).parent))
      sys.argv = arguments
      runpy.run_path(arguments[0], run_name="__main__")
  finally:
    atexit._run_exitfuncs()  # Before Python 3.13, multiprocessing does not.
