"""Saves Gram matrices of a training run's K gradients, for benchmarks/min_norm.py.

python benchmarks/record_grams.py --config=configs/mnist.py \
  --config.data.data_dir=DIR --config.seed=0 --output=benchmarks/data/mnist.npz

Trains with one PGD attack per step and, at evenly spaced steps, takes the gradients at
64 restarts on that step's batch.  Their inner products are accumulated in float64, so
the matrix is that of the float32 gradients to 1e-16.  The file holds the step numbers,
and the matrices as one triangle each.
"""

from typing import NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np
import optax
from tqdm import auto as tqdm

from ddi_jax import data, models
from ddi_jax.training import step as step_lib
from ddi_jax.training.train import create_model, load_data

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 1200, "Training steps.")
_MATRICES = flags.DEFINE_integer("matrices", 12, "Gram matrices to save.")
_RESTARTS = flags.DEFINE_integer("restarts", 64, "K.")


class _Recorded(NamedTuple):
  matrix: jax.Array  # the gradients, [K, d]


def _record() -> optax.GradientTransformation:
  """Keeps the K gradients in its state and moves nothing."""

  def update(updates, state, params=None):
    del state
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(updates)]
    return jax.tree.map(jnp.zeros_like, params), _Recorded(jnp.concatenate(flat, 1))

  return optax.GradientTransformation(lambda params: None, update)


def main(_):
  config = _CONFIG.value
  splits = load_data(config)
  model = create_model(config, splits)
  apply, params, model_state = models.functional(model)
  schedule = step_lib.create_schedule(config, _STEPS.value)
  epoch = len(splits.train.labels) // config.batch_size
  settings = {
    "steps_per_epoch": epoch,
    "max_value": splits.max_value,
  }
  recording = config.copy_and_resolve_references()
  recording.method, recording.num_restarts = "danskin", _RESTARTS.value
  recorder = optax.chain(_record())
  record = step_lib.create_train_step(recording, apply, recorder, schedule, **settings)
  config.method = "pgd"
  optimizer = step_lib.create_optimizer(config, schedule)
  train = step_lib.create_train_step(config, apply, optimizer, schedule, **settings)
  state = step_lib.create_train_state(params, model_state, optimizer)
  recorded_at = np.linspace(0, _STEPS.value - 1, _MATRICES.value).round().astype(int)
  triangle = np.tril_indices(_RESTARTS.value)
  grams = []
  batches = data.training_batches(
    splits.train, config.batch_size, config.seed, start=0, stop=_STEPS.value
  )
  for step, batch in enumerate(tqdm.tqdm(batches, total=_STEPS.value)):
    images, labels = batch["image"], batch["label"]
    if step in recorded_at:
      copied = jax.tree.map(jnp.copy, state._replace(opt_state=(None,)))
      _, metrics = record(copied, images, labels)
      matrix = np.asarray(metrics["direction/matrix"], np.float64)
      grams.append((matrix @ matrix.T)[triangle])
    state, _ = train(state, images, labels)
  np.savez_compressed(_OUTPUT.value, steps=recorded_at, triangles=np.stack(grams))


if __name__ == "__main__":
  app.run(main)
