"""Faults, each really made: kills, full disks, damaged files, two runs at once."""

import errno
import json
import os
from pathlib import Path
import random
import resource
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
from program import command, launch, parameters, small_config
import pytest

from ddi_jax import training
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage import checkpoints as saved
from ddi_jax.training.storage import logs
from ddi_jax.training.storage import workdir as workdirs
from ddi_jax.training.storage.checksums import find_damage

# A checkpoint every fourth of 80 steps; the dense layer makes one of a megabyte.
SETTINGS = {
  "num_epochs": 20.0,
  "evaluation.every_epochs": 1.0,
  "evaluation.validation_limit": 16,
  "model.hidden": 2000,
}
pytestmark = pytest.mark.usefixtures("unbuffered")
MARK = "Workdir:"  # in the last line printed before the first step


def start(workdir):
  return subprocess.Popen(
    command(workdir, **SETTINGS),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=workdir.parent,
  )


def wait_for_training(process):
  for line in process.stdout:
    if MARK in line:
      return
  _, errors = process.communicate()  # A run that had nothing left to train returns 0.
  assert process.returncode == 0, f"it ended before its training: {errors}"


def wait_for_checkpoint(process, workdir, step):
  path = workdir / "checkpoints" / str(step)
  while process.poll() is None:
    if any(
      int(path.parent.name) >= step for path in path.parent.glob("*/checksums.json")
    ):
      return
    time.sleep(0.01)
  pytest.fail(f"it ended before step {step}: {process.communicate()[1]}")


class Reference:
  """An uninterrupted run."""

  def __init__(self, workdir):
    began = time.monotonic()
    process = start(workdir)
    wait_for_training(process)
    self.startup = time.monotonic() - began
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    self.training = time.monotonic() - began - self.startup
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
def reference(unbuffered, tmp_path_factory):
  del unbuffered
  workdir = tmp_path_factory.mktemp("runs") / "reference"
  start(workdir).communicate()  # Fills the compilation cache.
  shutil.rmtree(workdir)
  return Reference(workdir)


def assert_same_as(reference, workdir):
  jax.tree.map(np.testing.assert_array_equal, parameters(workdir), reference.parameters)
  assert history(workdir) == reference.history
  assert summary(workdir) == reference.summary


def resume(workdir):
  result = launch(workdir, **SETTINGS)
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.mark.slow
def test_killed_at_ten_random_moments(reference, tmp_path):
  moments = random.Random(0)
  workdir, kills = tmp_path / "0", 0
  while kills < 10:
    process = start(workdir)
    if kills % 2:  # While starting, or while training and saving.
      wait_for_training(process)
      time.sleep(moments.uniform(0, reference.training / 5))
    else:
      time.sleep(moments.uniform(0, reference.startup))
    process.kill()
    process.communicate()
    if process.returncode == 0:  # It was faster.
      assert_same_as(reference, workdir)
      workdir = tmp_path / str(kills)
    else:
      kills += 1
  resume(workdir)
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
  subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fill_disk, limit_files])
def test_disk_full_while_saving(reference, tmp_path, request, fault):
  folder = tmp_path
  if fault is fill_disk:
    folder = request.getfixturevalue("small_disk")
  workdir = folder / "run"
  process = start(workdir)
  wait_for_checkpoint(process, workdir, 4)
  fault(workdir, process)
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 1
  # Other lines: at the end of the process orbax may complain of its closed event loop.
  lines = errors.splitlines()
  (message,) = [line for line in lines if line.startswith("launch.py: ")]
  if fault is limit_files:
    assert "could not be saved" in message
    assert os.strerror(errno.EFBIG) in message
  else:
    assert os.strerror(errno.ENOSPC) in message
  assert "with the cause mended, the same command resumes there" in message
  good = int(message.split("The checkpoint of step ")[1].split()[0])
  assert find_damage(workdir / "checkpoints" / str(good)) is None

  (folder / "filler").unlink(missing_ok=True)
  assert f"steps {good} to 80" in resume(workdir)
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
  first.communicate()
  with (
    pytest.raises(training.ConfigError, match="holds a run with another config"),
    workdirs.claim_workdir(workdir, small_config()),
  ):
    pass


def state(step):
  return TrainState(
    np.array(step, np.int32), {"w": np.full(20, step, np.float32)}, {}, ()
  )


def save(workdir, *steps):
  manager = saved.Checkpoints(workdir)
  for step in steps:
    result = Validation(0.5, 0.1 + step / 100, 0.5, 1.0, 1.0)
    manager.save(state(step), {"evaluated": step}, result)
  manager.close()


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink])
def test_any_damage_to_a_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
  original = tmp_path / "original"
  save(original, 4, 8)
  latest = Path("checkpoints") / "8"
  files = [
    path.relative_to(original / latest)
    for path in (original / latest).rglob("*")
    if path.is_file() and path.stat().st_size
  ]
  assert len(files) > 5
  for number, name in enumerate(files):
    workdir = tmp_path / str(number)
    shutil.copytree(original, workdir)
    damage(workdir / latest / name)
    (message,) = saved.set_damaged_aside(workdir)
    assert message.startswith("The checkpoint of step 8 is not good (")
    if name.name != "checksums.json":
      assert str(name) in message
    assert message.endswith("going on from step 4.")
    assert not (workdir / latest).exists()
  manager = saved.Checkpoints(workdir)
  assert manager.latest_step == manager.best_step == 4
  restored, progress = manager.restore(4, state(0))
  np.testing.assert_array_equal(restored.params["w"], 4)
  assert progress == {"evaluated": 4}
  manager.close()


def test_damage_while_running_is_seen_before_it_is_restored(tmp_path):
  save(tmp_path, 4)
  flip_a_bit(tmp_path / "checkpoints" / "4" / "state" / "manifest.ocdbt")
  manager = saved.Checkpoints(tmp_path)
  with pytest.raises(saved.CheckpointError, match=r"manifest.ocdbt is not as it was"):
    manager.restore(4, state(0))
  manager.close()


def test_what_a_kill_left_half_written_is_deleted(tmp_path):
  save(tmp_path, 4)
  folder = tmp_path / "checkpoints"
  (folder / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  assert saved.set_damaged_aside(tmp_path) == []
  assert [path.name for path in folder.iterdir()] == ["4"]
  # The first checkpoint of a run, killed between its files and their checksums.
  (folder / "4" / "checksums.json").unlink()
  (message,) = saved.set_damaged_aside(tmp_path)
  assert message.endswith("deleted, starting from step 0.")
  assert list(folder.iterdir()) == []


def test_where_no_checkpoint_is_good_nothing_is_deleted(tmp_path):
  workdir = tmp_path / "run"
  with workdirs.claim_workdir(workdir, small_config()):
    save(workdir, 4, 8)
  for step in ("4", "8"):
    cut(workdir / "checkpoints" / step / "state" / "manifest.ocdbt")
  before = sorted((workdir / "checkpoints").rglob("*"))
  with pytest.raises(training.TrainingError) as error:
    training.train(small_config(), workdir)
  assert "no checkpoint in" in str(error.value)
  assert "8: state/manifest.ocdbt is not as it was saved" in str(error.value)
  assert "Nothing was deleted" in str(error.value)
  assert sorted((workdir / "checkpoints").rglob("*")) == before


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_ends_the_same(reference, tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir)
  wait_for_checkpoint(process, workdir, 12)
  process.kill()
  process.communicate()
  steps = saved.good_steps(workdir)
  cut(workdir / "checkpoints" / str(steps[-1]) / "state" / "manifest.ocdbt")
  output = resume(workdir)
  assert f"The checkpoint of step {steps[-1]} is not good" in output
  assert f"going on from step {steps[-2]}" in output
  assert (workdir / "damaged_checkpoints" / str(steps[-1])).is_dir()
  assert_same_as(reference, workdir)
