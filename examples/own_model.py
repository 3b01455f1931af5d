"""Train, evaluate and save a flax network of your own, in one script.

python examples/own_model.py --epochs=30

The network has BatchNorm and Dropout, and the data are scikit-learn's digits (pip
install -e '.[training]').  Copy this script, and change `Network` and `load`.
"""

import argparse
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

import ddi_jax
from ddi_jax import models

THREAT_MODEL = ddi_jax.linf(0.1)  # Each pixel changes by at most 0.1.


class Network(nnx.Module):
  """A network with one convolution and one hidden layer."""

  def __init__(self, rngs: nnx.Rngs) -> None:
    # On a CPU, convolutions of ddi_jax have gradients that stay fast inside a loop.
    self.conv = nnx.Conv(
      1, 16, (3, 3), conv_general_dilated=models.conv_general_dilated, rngs=rngs
    )
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.hidden = nnx.Linear(8 * 8 * 16, 64, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.logits = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, images):  # [B, 8, 8, 1] -> logits [B, 10]
    x = nnx.relu(self.norm(self.conv(images)))
    x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
    return self.logits(self.dropout(x))


def load():
  """Images in [0, 1] with labels, for training and for testing."""
  digits = load_digits()
  images = (digits.images / 16).astype(np.float32)[..., None]
  labels = digits.target.astype(np.int32)
  return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def create_train_step(apply, optimizer):
  """The jitted training step.

  It takes (params, model_state, opt_state, images, labels, key), and returns the new
  params, model_state and opt_state, and the robust loss.
  """
  attack = ddi_jax.pgd(THREAT_MODEL, steps=5, step_size=0.03)

  @jax.jit
  def train_step(params, model_state, opt_state, images, labels, key):
    # The gradients use the network in training mode.
    def loss_fn(params, images, labels, key):
      logits, new_state = apply(params, model_state, images, train=True, key=key)
      return ddi_jax.losses.cross_entropy(logits, labels), new_state

    # The attack uses the network in evaluation mode.
    def attack_loss_fn(params, images, labels):
      logits, _ = apply(params, model_state, images, train=False)
      return ddi_jax.losses.cross_entropy(logits, labels)

    gradients_fn = ddi_jax.restart_gradients(
      loss_fn,
      attack,
      num_restarts=2,
      has_aux=True,
      attack_loss_fn=attack_loss_fn,
      loss_keys="per_candidate",
    )
    gradients, info = gradients_fn(params, images, labels, key)  # leaves [2, *param]
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    robust_loss = info.losses.max(axis=0).mean()
    return params, models.mean_state(info.aux), opt_state, robust_loss

  return train_step


def train(network, images, labels, *, epochs, batch_size=100):
  """Train the network in place."""
  apply, params, model_state = models.functional(network)
  optimizer = optax.chain(
    ddi_jax.danskin_direction(normalize=False),  # Must be first in the chain.
    optax.adam(2e-3),
  )
  opt_state = optimizer.init(params)
  train_step = create_train_step(apply, optimizer)
  generator, key = np.random.default_rng(0), jax.random.key(1)
  for epoch in range(epochs):
    losses = []
    order = generator.permutation(len(images))
    for start in range(0, len(order) - batch_size + 1, batch_size):
      batch = order[start : start + batch_size]
      key, step_key = jax.random.split(key)
      params, model_state, opt_state, loss = train_step(
        params, model_state, opt_state, images[batch], labels[batch], step_key
      )
      losses.append(loss)
    print(f"epoch {epoch + 1}: robust loss {jnp.stack(losses).mean():.3f}", flush=True)
  nnx.update(network, params)
  nnx.update(network, model_state)


def evaluate(network, images, labels):
  """Evaluate the network with AutoAttack."""
  apply, params, model_state = models.functional(network)

  def logits_fn(params, images):
    return apply(params, model_state, images, train=False)[0]

  return ddi_jax.evaluate(
    jax.random.key(2),
    jax.tree_util.Partial(logits_fn, params),
    images,
    labels,
    THREAT_MODEL,
  )


def save(network, folder):
  """Write the network's arrays to a folder, for `restore`."""
  _, state = nnx.split(network, nnx.RngState, ...)[1:]
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path(folder).absolute(), nnx.to_pure_dict(state), force=True)


def restore(folder):
  """Make a network with the arrays that `save` has written."""
  network = Network(nnx.Rngs(0))
  _, state = nnx.split(network, nnx.RngState, ...)[1:]
  with ocp.StandardCheckpointer() as checkpointer:
    arrays = checkpointer.restore(Path(folder).absolute(), nnx.to_pure_dict(state))
  nnx.replace_by_pure_dict(state, arrays)
  nnx.update(network, state)
  return network


def main():
  """Train, save, restore and evaluate."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--epochs", type=int, default=30)
  parser.add_argument("--folder", default="runs/own_model")
  parser.add_argument("--test_images", type=int, default=200)
  arguments = parser.parse_args()
  (images, labels), (test_images, test_labels) = load()
  network = Network(nnx.Rngs(0))
  train(network, images, labels, epochs=arguments.epochs)
  save(network, arguments.folder)
  network = restore(arguments.folder)
  count = arguments.test_images
  print(evaluate(network, test_images[:count], test_labels[:count]))


if __name__ == "__main__":
  main()
