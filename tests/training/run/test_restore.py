"""A run's network from its folder: the arrays of the checkpoint, in the right place."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax import data, models, training
from ddi_jax.training.run.experiment import create_model
from ddi_jax.training.step.state import create_train_state
from ddi_jax.training.step.train_step import create_optimizer
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage.checkpoints import Checkpoints
from ddi_jax.training.storage.workdir import claim_workdir

IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)


def small_config():
  config = training.default_config()
  config.model.width = 2
  config.model.hidden = 4
  config.model.strides = (2, 2)
  config.model.normalization = "batch"
  config.danskin.loss_tolerance = 0.5
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A folder with checkpoints of steps 1, the best, and 2; the models of both."""
  config = small_config()
  workdir = tmp_path_factory.mktemp("runs") / "run"
  with claim_workdir(workdir, config):
    pass
  optimizer = create_optimizer(config)
  checkpoints = Checkpoints(workdir)
  expected = []
  for step, accuracy in ((1, 0.6), (2, 0.5)):
    config.seed = step  # Other parameters, whatever the run's seed.
    splits = data.load("digits", validation_size=200)
    apply, params, model_state = models.functional(create_model(config, splits))
    state = create_train_state(params, model_state, optimizer)
    state = state._replace(step=jnp.asarray(step, state.step.dtype))
    checkpoints.save(state, {}, Validation(0.7, accuracy, 0.5, 1.0, 1.0))
    expected.append(apply(params, model_state, IMAGES, train=False)[0])
  checkpoints.close()
  return workdir, expected


@pytest.mark.slow
def test_the_config_is_the_run_s(run):
  assert training.load_config(run[0]).to_dict() == small_config().to_dict()


@pytest.mark.slow
def test_checkpoints_by_name(run):
  workdir, (best, latest) = run
  assert not np.allclose(best, latest)
  np.testing.assert_allclose(training.load_model(workdir)(IMAGES), best, rtol=1e-5)
  model = training.load_model(str(workdir), "last")
  np.testing.assert_allclose(model(IMAGES), latest, rtol=1e-5)


def test_what_is_not_there_is_named(run, tmp_path):
  with pytest.raises(training.ConfigError, match="best, last; got 'first'"):
    training.load_model(run[0], "first")
  with pytest.raises(training.ConfigError, match=r"holds no run: .* no config\.json"):
    training.load_model(tmp_path)
  assert not list(tmp_path.iterdir())
  empty = tmp_path / "empty"
  with claim_workdir(empty, small_config()):
    pass
  with pytest.raises(training.ConfigError, match="holds no best checkpoint yet"):
    training.load_model(empty)
  stored = json.loads((empty / "config.json").read_text())
  (empty / "config.json").write_text(json.dumps(stored | {"of_another_version": 1}))
  with pytest.raises(training.ConfigError, match=r"config\.json is not a config of"):
    training.load_model(empty)
