"""Programs in processes of their own, which need not import JAX again.

The imports take seconds.  Python's fork server does them once for each worker of
pytest, and a program is then a fork of it: with its own process number, signals, exit
status and output, as if it had been started on the command line.  Variables of the
environment that JAX reads when it is imported are those of pytest.
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
import weakref

import pytest

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
  [
    *("ddi_jax.training.run.program", "ddi_jax.training.audit.program"),
    *("ml_collections.config_flags", "sklearn.datasets", "grain.python"),
    *("orbax.checkpoint", "tensorboardX", "matplotlib.backends.backend_agg", "pandas"),
  ]
)


class Program:
  """A running Python program, much like `subprocess.Popen`."""

  def __init__(self, arguments, cwd, env=None):
    """Starts it.

    Args:
      arguments: those of Python: a file, or "-m" and a module; then the program's.
      cwd: the folder to start it in.
      env: its environment; by default this process's.
    """
    folder = tempfile.mkdtemp()
    weakref.finalize(self, shutil.rmtree, folder)
    self._outputs = [Path(folder) / name for name in ("stdout", "stderr")]
    for path in self._outputs:
      path.touch()
    self._process = _FORKS.Process(
      target=_run,
      args=(list(map(str, arguments)), str(cwd), dict(env or os.environ)),
      kwargs={"outputs": list(map(str, self._outputs))},
    )
    self._process.start()
    self.pid = self._process.pid

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
    """Waits until it ends, at most for `timeout` seconds."""
    self._process.join(timeout)
    if self.returncode is None:
      pytest.fail(f"it runs after {timeout} seconds: {self.stdout}{self.stderr}")
    return self

  def wait_until(self, condition, timeout=120):
    """Waits until `condition()`, of which the program must not end before."""
    deadline = time.monotonic() + timeout
    while True:
      ended = self.returncode is not None or time.monotonic() > deadline
      if condition():
        return
      if ended:
        pytest.fail(f"status {self.returncode} too early: {self.stdout}{self.stderr}")
      time.sleep(0.01)


def run_program(arguments, cwd, env=None):
  """The ended program."""
  return Program(arguments, cwd, env).wait()


def _run(arguments, cwd, env, outputs):
  for number, path in enumerate(outputs, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
  sys.stdout = open(1, "w", buffering=1, closefd=False)
  sys.stderr = open(2, "w", buffering=1, closefd=False)
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  try:
    if arguments[0] == "-m":
      sys.path.insert(0, cwd)
      sys.argv = arguments[1:]
      runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
      sys.path.insert(0, str(Path(arguments[0]).parent))
      sys.argv = arguments
      runpy.run_path(arguments[0], run_name="__main__")
  finally:
    atexit._run_exitfuncs()  # multiprocessing leaves them out.
