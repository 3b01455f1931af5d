"""Faults, each really made: kills, full disks, damaged files, two runs at once.

KILLS=100 python -m pytest -n 0 tests/training/run/test_faults.py -k killed
FULL_DISKS=50 python -m pytest -n 0 tests/training/run/test_faults.py -k limit_files

By default there are four kills, and the disk becomes full right after a checkpoint.
FULL_DISKS adds random moments.
"""

import errno
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import time

from forked_programs import Program
import jax
import numpy as np
from program import MLP, command, launch, parameters, small_config
import pytest

from ddi_jax import training
from ddi_jax.training.storage import checkpoints as saved
from ddi_jax.training.storage import logs
from ddi_jax.training.storage import workdir as workdirs
from ddi_jax.training.storage.checksums import find_damage

# A checkpoint of a megabyte every fourth of 40 steps.
SETTINGS = {
  "model": MLP | {"model.layers": (2000,)},
  "num_epochs": 10.0,
  "evaluation.every_epochs": 1.0,
  "evaluation.validation_limit": 16,
}
KILLS = int(os.environ.get("KILLS", "4"))
FULL_DISKS = int(os.environ.get("FULL_DISKS", "0"))
DELAYS = [random.Random(number).uniform(0, 0.3) for number in range(FULL_DISKS)]
MARK = "Workdir:"  # in the last line printed before the first step


def start(workdir):
  return Program(command(workdir, **SETTINGS), workdir.parent)


def wait_for_training(process):
  """Or for its end, if nothing was left to train."""
  process.wait_until(lambda: MARK in process.stdout or process.returncode == 0)


def wait_for_checkpoint(process, workdir, step):
  folder = workdir / "checkpoints"
  process.wait_until(
    lambda: any(
      int(path.parent.name) >= step for path in folder.glob("*/checksums.json")
    )
  )


class Reference:
  """An uninterrupted run.  It compiles, so that others start and train faster."""

  def __init__(self, workdir):
    process = start(workdir)
    began = time.monotonic()
    wait_for_training(process)
    self.startup = time.monotonic() - began
    process.wait()
    assert process.returncode == 0, process.stderr
    self.parameters = parameters(workdir)
    self.history = history(workdir)
    self.summary = summary(workdir)


def summary(workdir):
  content = json.loads((workdir / "summary.json").read_text())
  del content["seconds"]
  return content


def history(workdir):
  return sorted(map(json.dumps, logs.read_metrics(workdir)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  return Reference(tmp_path_factory.mktemp("runs") / "reference")


def assert_same_as(reference, workdir):
  jax.tree.map(np.testing.assert_array_equal, parameters(workdir), reference.parameters)
  assert history(workdir) == reference.history
  assert summary(workdir) == reference.summary


def resume(workdir, capsys):
  training.train(training.load_config(workdir), workdir)
  return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * KILLS)
def test_killed_at_random_moments(reference, tmp_path):
  moments = random.Random(0)
  folders = (tmp_path / str(number) for number in itertools.count())
  workdir, kills = next(folders), 0
  while kills < KILLS:
    reached = max(saved.good_steps(workdir), default=0)
    process = start(workdir)
    if kills % 2 and reached < 32:  # While training and saving, or while starting.
      wait_for_checkpoint(process, workdir, reached + 4)
      time.sleep(moments.uniform(0, 0.3))
    else:
      time.sleep(moments.uniform(0, reference.startup))
    process.kill()
    process.wait()
    if process.returncode == 0:  # It was faster.
      assert_same_as(reference, workdir)
      workdir = next(folders)
    else:
      kills += 1
  result = launch(workdir, **SETTINGS)
  assert result.returncode == 0, result.stderr
  assert_same_as(reference, workdir)
  left = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert all(name.isdecimal() for name in left)
  assert len(left) <= 3


def fill_disk(workdir, process):
  (workdir.parent / "filler").write_bytes(b"")
  with (workdir.parent / "filler").open("ab", buffering=0) as file:
    for size in (2**20, 2**12, 1):
      try:
        while True:
          file.write(bytes(size))
      except OSError:
        continue


def limit_files(workdir, process):
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))


@pytest.fixture
def small_disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
  if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("mounting a small file system needs root")
  yield folder
  subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fault", "delay"),
  [(fill_disk, 0), (limit_files, 0), *((limit_files, delay) for delay in DELAYS)],
)
def test_disk_full_while_saving(reference, tmp_path, request, capsys, fault, delay):
  folder = tmp_path
  if fault is fill_disk:
    folder = request.getfixturevalue("small_disk")
  workdir = folder / "run"
  process = start(workdir)
  wait_for_checkpoint(process, workdir, 4)
  time.sleep(delay)
  fault(workdir, process)
  errors = process.wait(timeout=900).stderr
  assert process.returncode == 1
  assert not any(word in errors for word in ("Traceback", "orbax", "asyncio", "Task"))
  message = errors.splitlines()[-1]
  assert message.startswith("launch.py: ")
  if fault is limit_files:
    assert "could not be saved" in message
    assert os.strerror(errno.EFBIG) in message
  else:
    assert os.strerror(errno.ENOSPC) in message
  assert "once the cause is fixed, the same command resumes there" in message
  good = int(message.split("The checkpoint of step ")[1].split()[0])
  assert find_damage(workdir / "checkpoints" / str(good)) is None

  (folder / "filler").unlink(missing_ok=True)
  assert f"steps {good} to 40" in resume(workdir, capsys)
  assert_same_as(reference, workdir)


@pytest.mark.slow
def test_the_second_of_two_runs_on_one_workdir_is_refused(tmp_path):
  workdir = tmp_path / "run"
  first = start(workdir)
  wait_for_training(first)
  first.send_signal(signal.SIGSTOP)  # It shall not end meanwhile.
  second = launch(workdir, **SETTINGS)
  assert second.returncode == 1
  assert (
    second.stderr.strip()
    .splitlines()[-1]
    .startswith(
      f"launch.py: workdir {workdir} is in use by another run (process {first.pid} on "
    )
  )
  first.kill()  # Frees the workdir too: now it is refused for its config only.
  first.wait()
  with (
    pytest.raises(training.ConfigError, match="holds a run with another config"),
    workdirs.claim_workdir(workdir, small_config()),
  ):
    pass


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_ends_the_same(reference, tmp_path, capsys):
  workdir = tmp_path / "run"
  process = start(workdir)
  wait_for_checkpoint(process, workdir, 12)
  process.kill()
  process.wait()
  steps = saved.good_steps(workdir)
  manifest = workdir / "checkpoints" / str(steps[-1]) / "state" / "manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:-1])
  output = resume(workdir, capsys)
  assert f"The checkpoint of step {steps[-1]} is not good" in output
  assert f"resuming from step {steps[-2]}" in output
  assert (workdir / "damaged_checkpoints" / str(steps[-1])).is_dir()
  assert_same_as(reference, workdir)
