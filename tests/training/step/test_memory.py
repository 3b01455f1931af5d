"""What cannot fit is refused by an estimate, before anything is compiled."""

import jax
import numpy as np
from program import small_config
import pytest

from ddi_jax import training
from ddi_jax.data.host_memory import host_memory
from ddi_jax.training.step import memory


@pytest.fixture
def compilations():
  """The names of what jax compiles during a test."""
  names = []

  def listen(event, duration, **kwargs):
    if "backend_compile" in event:
      names.append(kwargs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize(
  ("changes", "part"),
  [
    ({"model.width": 100_000}, "parameters"),
    ({"num_restarts": 10**9}, "1000000000 gradient(s) of them"),
    ({"num_restarts": 10**9, "gradients_at_a_time": 1}, "candidate(s) of the batch"),
    ({"evaluation.restarts": 10**6, "evaluation.batch_size": 10**6}, "attacked images"),
  ],
)
def test_absurd_sizes_stop_before_compilation(tmp_path, compilations, changes, part):
  with pytest.raises(training.ConfigError) as error:
    training.train(small_config(**changes), tmp_path / "run")
  message = str(error.value)
  assert "needs at least" in message
  assert part in message
  assert f"has {host_memory() / 2**30:.3g} GiB" in message
  assert "reduce config." in message
  assert not compilations
  assert not (tmp_path / "run").exists()
  jax.jit(lambda x: x + len(part)).lower(1.0).compile()
  assert compilations  # They are seen.


def test_the_estimate_is_that_of_the_arrays(monkeypatch):
  """Just enough is enough, and a byte less is not."""
  config = small_config(**{"evaluation.batch_size": 1})  # batch 16, two restarts
  params = {"w": np.zeros((10, 30), np.float32)}
  opt_state = (np.zeros(300, np.float32), np.zeros((), np.int32))
  images = 2 * 16 * (8 * 8 * 1) * 4
  size = 1200 + 2 * 1200 + (1200 + 4) + images + 12 * 2**2
  train = ((8, 8, 1), 20)
  monkeypatch.setattr(memory, "host_memory", lambda: size)
  memory.check_memory(config, *train, params, opt_state)
  monkeypatch.setattr(memory, "host_memory", lambda: size - 1)
  with pytest.raises(training.ConfigError, match="a training step needs at least"):
    memory.check_memory(config, *train, params, opt_state)
  config.sources = ("warm:2",)
  remembered = 20 * 2 * (8 * 8 * 1) * 2
  monkeypatch.setattr(memory, "host_memory", lambda: size + remembered)
  memory.check_memory(config, *train, params, opt_state)
  monkeypatch.setattr(memory, "host_memory", lambda: size + remembered - 1)
  with pytest.raises(training.ConfigError, match="memory of the source warm"):
    memory.check_memory(config, *train, params, opt_state)
