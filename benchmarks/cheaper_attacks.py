"""The effect of cheaper attacks: bfloat16, early stopping and fewer steps.

python benchmarks/cheaper_attacks.py --data_dir=DIR --width=16 --batch_size=64 --steps=7

The network is a ResNet-18 for CIFAR-10 (in TFDS' format in DIR): at initialisation,
after a few steps of PGD training, and after more.  All attacks run on the same test
images with the same keys.  The script measures the mean loss in float32, the share of
images broken by K restarts, the cosine of the Danskin direction with that of full
attacks, and the time of the K attacks.  A second full attack with other keys shows the
effect of the keys alone.  The script prints a Markdown table.
"""

import functools

from absl import app, flags
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
from progress import progress
import workload

import ddi_jax
from ddi_jax import data, losses, models
from ddi_jax.training.settings.threats import step_size

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of TFDS' cifar10.")
_TRAINED = flags.DEFINE_list("trained", ["0", "50", "300"], "Training steps.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Number of batches of test images.")
_FULL, _OTHER_KEYS = "full", "full, other keys"
_SETTINGS = {  # Title -> (dtype of the attack, stop_below, number of omitted steps).
  _FULL: ("float32", None, 0),
  "bfloat16": ("bfloat16", None, 0),
  "end below 5 % of pixels": ("float32", 0.05, 0),
  "end below 20 % of pixels": ("float32", 0.2, 0),
  "1 step less": ("float32", None, 1),
  "2 steps less": ("float32", None, 2),
}


def _loss_fn(work, dtype):
  apply = models.in_bfloat16(work.apply) if dtype == "bfloat16" else work.apply

  def loss_fn(params, inputs, labels):
    logits, _ = apply(params, work.state.model_state, inputs, train=True)
    return losses.cross_entropy(logits, labels), jnp.argmax(logits, axis=-1) == labels

  return loss_fn


def _attacks(work, dtype, stop_below, less):
  """(params, inputs, labels, key) -> K candidates."""
  config = work.config
  loss_fn = _loss_fn(work, dtype)
  attack = ddi_jax.pgd(
    ddi_jax.linf(config.attack.epsilon),
    steps=config.attack.steps - less,
    step_size=step_size(config.attack, config.attack.epsilon),
    stop_below=stop_below,
  )

  @jax.jit
  def attacks(params, inputs, labels, key):
    return ddi_jax.restart_candidates(
      attack,
      lambda points, labels: loss_fn(params, points, labels)[0],
      inputs,
      labels,
      key,
      config.num_restarts,
    )

  return attacks


def _measure(work):
  """(params, candidates, labels) -> worst loss, share broken, Danskin's direction."""
  loss_fn = _loss_fn(work, "float32")

  @jax.jit
  def measure(params, candidates, labels):
    gradients, info = ddi_jax.candidate_gradients(
      loss_fn, params, candidates, labels, has_aux=True
    )
    direction = ddi_jax.danskin_direction()
    update, _ = direction.update(gradients, direction.init(params), params)
    broken = 1 - info.aux.all(axis=0).mean()
    return info.losses.max(axis=0).mean(), broken, ravel_pytree(update)[0]

  return measure


def _compare(attacks, measure, params, batches):
  """For each setting (name, worst loss, share broken, cosine to full, seconds)."""
  runs = {_FULL: attacks[_FULL], _OTHER_KEYS: attacks[_FULL], **attacks}
  measured = {name: [] for name in runs}
  for index, (inputs, labels) in enumerate(batches):
    key, other = jax.random.split(jax.random.key(index))
    for name, attack in runs.items():
      candidates = attack(params, inputs, labels, other if name == _OTHER_KEYS else key)
      measured[name].append(measure(params, candidates, labels))
  seconds = workload.median_seconds(
    {
      name: functools.partial(attack, params, *batches[0], jax.random.key(0))
      for name, attack in attacks.items()
    }
  )
  for name, rows in measured.items():
    worst, broken = (np.mean([row[part] for row in rows]) for part in range(2))
    cosines = [
      float(row[2] @ full[2])  # Both have unit norm.
      for row, full in zip(rows, measured[_FULL], strict=True)
    ]
    yield name, worst, broken, np.mean(cosines), seconds.get(name)


def main(_):
  """Train, compare and print."""
  print(workload.describe() + "\n", flush=True)
  work = workload.create("pgd", {"optimizer.learning_rate": 0.05})
  splits = data.load("cifar10", data_dir=_DATA_DIR.value, validation_size=1000)
  size = work.config.batch_size
  batches = [
    (
      jnp.asarray(splits.test.images[start : start + size] / 255, jnp.float32),
      jnp.asarray(splits.test.labels[start : start + size]),
    )
    for start in range(0, _BATCHES.value * size, size)
  ]
  counts = sorted(int(text) for text in _TRAINED.value)
  stream = data.training_batches(splits.train, size, seed=0, start=0, stop=counts[-1])
  print(
    "| trained for | attack | worst loss | broken | cosine to full | K attacks (s) |\n"
    "|---|---|---|---|---|---|"
  )
  attacks = {name: _attacks(work, *setting) for name, setting in _SETTINGS.items()}
  measure = _measure(work)
  state, done = work.state, 0
  for count in counts:
    for _ in progress(range(done, count)):
      batch = next(stream)
      state, _ = work.train_step(state, batch, work.experiment.hyperparameters)
    done = count
    params = jax.tree.map(jnp.copy, state.params)
    for name, worst, broken, cosine, seconds in _compare(
      attacks, measure, params, batches
    ):
      print(
        f"| {count} steps | {name} | {worst:.4f} | {broken:.1%} | {cosine:.4f} | "
        f"{f'{seconds:.2f}' if seconds else ''} |",
        flush=True,
      )


if __name__ == "__main__":
  app.run(main)
