"""Save Gram matrices of a training run's gradients, for benchmarks/min_norm.py.

python benchmarks/record_grams.py --config=configs/mnist.py \
  --config.data.data_dir=DIR --config.seed=0 --output=benchmarks/data/mnist.npz

The script trains with one PGD attack per step.  At evenly spaced steps, it computes the
gradients at 64 restarts on the step's batch.  Their inner products are accumulated in
float64, so the matrix is that of the float32 gradients to 1e-16.  The file has the step
numbers, and one triangle of each matrix.
"""

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np
from progress import progress

from ddi_jax import data, training

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 1200, "Training steps.")
_MATRICES = flags.DEFINE_integer("matrices", 12, "Gram matrices to save.")
_RESTARTS = flags.DEFINE_integer("restarts", 64, "K.")
_KEY = jax.random.key(0)


def main(_):
  """Train with PGD, and compute K gradients at some of the steps."""
  config = _CONFIG.value
  config.method = "pgd"
  config = training.drop_unused(config)
  recorded = config.copy_and_resolve_references()
  recorded.method, recorded.num_restarts = "average", _RESTARTS.value
  splits = training.load_data(config)
  experiment = training.create_experiment(config, splits)
  parts = training.create_experiment(recorded, splits).parts

  @jax.jit
  def gradients_of(state, batch):
    augment_key, attack_key = jax.random.split(jax.random.fold_in(_KEY, state.step))
    inputs = parts.augment(augment_key, batch["image"])
    arguments = (batch["label"], batch["index"], attack_key, augment_key)
    candidates = parts.candidates(state, inputs, *arguments)
    gradients = parts.gradients(state, candidates.points, batch["label"], 0.0).updates
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)]
    return jnp.concatenate(flat, axis=1)

  recorded_at = np.linspace(0, _STEPS.value - 1, _MATRICES.value).round().astype(int)
  triangle = np.tril_indices(_RESTARTS.value)
  grams = []
  batches = data.training_batches(
    splits.train, config.batch_size, config.seed, start=0, stop=_STEPS.value
  )
  state = experiment.start()
  for step, batch in zip(progress(range(_STEPS.value)), batches, strict=True):
    if step in recorded_at:
      matrix = np.asarray(gradients_of(state, batch), np.float64)
      grams.append((matrix @ matrix.T)[triangle])
    state, _ = experiment.train_step(state, batch, experiment.hyperparameters)
  np.savez_compressed(_OUTPUT.value, steps=recorded_at, triangles=np.stack(grams))


if __name__ == "__main__":
  app.run(main)
