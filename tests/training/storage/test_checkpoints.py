"""Checkpoints that are damaged or half written."""

import logging
from pathlib import Path
import shutil
import sys
from types import SimpleNamespace

import numpy as np
from program import small_config
import pytest

from ddi_jax import training
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage import checkpoints as saved
from ddi_jax.training.storage import workdir as workdirs


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
    assert message.endswith("resuming from step 4.")
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


def test_a_kill_during_the_deletion_of_an_old_checkpoint_leaves_nothing(
  tmp_path, monkeypatch
):
  def killed(path, *arguments, **settings):
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    if files:
      files[0].unlink()
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      save(tmp_path, 4, 8, 12)  # The third replaces the first.
  assert saved.set_damaged_aside(tmp_path) == []
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"8", "12"}
  assert not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["[ab]", "a*b?", "{a}", "a b", "\u00e9\u6f22", "a%20#b:c", "a[!b]", "-a"]
)
def test_folders_of_any_name(name, tmp_path):
  workdir = tmp_path / name
  save(workdir, 4, 8)
  assert saved.set_damaged_aside(workdir) == []
  manager = saved.Checkpoints(workdir)
  assert manager.latest_step == 8
  assert manager.directory == workdir / "checkpoints"
  restored, _ = manager.restore(8, state(0))
  np.testing.assert_array_equal(restored.params["w"], 8)
  manager.close()
  assert [path.name for path in tmp_path.iterdir()] == [name]


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


def test_abandoned_writes_are_silent_and_other_errors_are_not(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  logger = logging.getLogger("asyncio")
  monkeypatch.setattr(logger, "filters", [])
  saved._silence_abandoned_writes.__wrapped__()

  closed = RuntimeError("Event loop is closed")
  sys.unraisablehook(SimpleNamespace(object=None, exc_value=closed))
  assert not shown
  others = [
    SimpleNamespace(object=None, exc_value=RuntimeError("another")),
    SimpleNamespace(object="of somebody", exc_value=closed),
  ]
  for other in others:
    sys.unraisablehook(other)
  assert shown == others

  def is_logged(message):
    return bool(logger.filter(logging.makeLogRecord({"msg": message})))

  never_read = "Task exception was never retrieved, in"
  assert not is_logged(f"{never_read} lib/orbax/checkpoint/_src/serialization.py")
  assert not is_logged(f"{never_read} run/8.orbax-checkpoint-tmp/state")
  assert is_logged(f"{never_read} lib/somebody/else.py")
