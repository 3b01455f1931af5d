"""Each program is compiled once in a run, and not again when the run resumes."""

import collections

import jax
import pytest

from ddi_jax import training
from ddi_jax.training.devices import compilation
from ddi_jax.training.run import program
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.storage import logs


@pytest.fixture
def events():
  """Counts of what jax reports: compiled functions by name, cache hits."""
  counts = collections.Counter()

  def count_compilation(event, duration, **details):
    del duration
    if event == "/jax/core/compile/backend_compile_duration":
      counts[details["fun_name"]] += 1

  def count(event, **details):
    del details
    counts[event] += 1

  jax.monitoring.register_event_duration_secs_listener(count_compilation)
  jax.monitoring.register_event_listener(count)
  yield counts
  jax.monitoring.unregister_event_duration_listener(count_compilation)
  jax.monitoring.unregister_event_listener(count)


@pytest.mark.slow
@pytest.mark.usefixtures("no_compilation_cache")
def test_a_run_compiles_its_step_once(tmp_path, monkeypatch, events):
  """Across evaluations of three sets, partial last batches, interruption and resume."""
  config = training.default_config()
  config.batch_size = 32
  config.num_epochs = 2.0
  config.num_restarts = 2
  config.attack.steps = 2
  config.data.limit = 100  # 3 batches a epoch, 4 images over
  config.evaluation.batch_size = 64  # 100 test images: one batch and a part
  config.evaluation.steps = 2
  config.evaluation.validation_limit = 50
  config.model.width = 2
  config.model.hidden = 8
  last_step = {"limit": 4}
  steps = []

  class StopsAtStep(Interruption):
    def __call__(self):
      return len(steps) >= last_step["limit"]

  write = logs.MetricLog.write

  def count_steps(self, step, split, numbers):
    if split == "train":
      steps.append(step)
    write(self, step, split, numbers)

  monkeypatch.setattr(program, "Interruption", StopsAtStep)
  monkeypatch.setattr(logs.MetricLog, "write", count_steps)
  assert training.train(config, tmp_path) is None
  assert steps == [1, 2, 3, 4]
  assert events["jit(train_step)"] == events["jit(sums_of_batch)"] == 1
  assert events["/jax/compilation_cache/cache_hits"] == 0
  assert list((tmp_path / compilation.FOLDER).iterdir())

  events.clear()
  jax.clear_caches()
  last_step["limit"] = 100
  assert training.train(config, tmp_path) is not None
  assert steps == [1, 2, 3, 4, 5, 6]
  assert events["jit(train_step)"] == events["jit(sums_of_batch)"] == 1
  # Both from the folder, so that nothing that takes a second was compiled.
  assert events["/jax/compilation_cache/cache_hits"] >= 2


@pytest.mark.usefixtures("no_compilation_cache")
def test_the_user_s_own_cache_stays(tmp_path):
  own = str(tmp_path / "own")
  with compilation.compilation_cache_in(tmp_path):
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / compilation.FOLDER)
  assert jax.config.jax_compilation_cache_dir is None
  jax.config.update("jax_compilation_cache_dir", own)
  try:
    with compilation.compilation_cache_in(tmp_path):
      assert jax.config.jax_compilation_cache_dir == own
    assert jax.config.jax_compilation_cache_dir == own
  finally:
    jax.config.update("jax_compilation_cache_dir", None)
