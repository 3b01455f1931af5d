"""The attacks of AutoAttack beside their authors' own, on the same weights.

pip install -e '.[peers]'
python benchmarks/autoattack_parity.py [--norms=linf,l2,l1] [--seeds=5]

A ReLU network is trained against PGD on scikit-learn's digits, in jax, and copied into
PyTorch.  Then every attack runs alone on all test images, here and in pyautoattack (the
PyTorch release of Croce and Hein), once for each seed; in the end both ensembles.  The
table gives robust accuracies, mean and standard error over the seeds.
"""

import time

from absl import app, flags
import jax
import jax.numpy as jnp
from machine import describe_machine
import numpy as np
import optax
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from sklearn.datasets import load_digits
import torch

import ddi_jax
from ddi_jax import attacks, losses

_NORMS = flags.DEFINE_list("norms", ["linf", "l2", "l1"], "Which balls.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each attack.")

_THREAT_MODELS = {
  "linf": ddi_jax.linf(0.2),
  "l2": ddi_jax.l2(1.0),
  "l1": ddi_jax.l1(4.0, top_fraction=0.1),
}
_THEIR_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_SIZES = (64, 128, 64, 10)


def digits():
  """Training and test set: images [N, 8, 8, 1] in [0, 1] and labels."""
  data = load_digits()
  order = np.random.default_rng(0).permutation(len(data.target))
  images = (data.data[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
  labels = data.target[order].astype(np.int32)
  return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def apply(params, inputs):
  """Logits of the network."""
  hidden = inputs.reshape(len(inputs), -1)
  for weights, bias in params[:-1]:
    hidden = jax.nn.relu(hidden @ weights + bias)
  weights, bias = params[-1]
  return hidden @ weights + bias


def train(threat_model, images, labels):
  """Parameters after 1,500 steps of adversarial training."""
  keys = jax.random.split(jax.random.key(0), 3)
  params = [
    (np.sqrt(2 / rows) * jax.random.normal(key, (rows, columns)), jnp.zeros(columns))
    for key, rows, columns in zip(keys, _SIZES[:-1], _SIZES[1:], strict=True)
  ]
  attack = ddi_jax.pgd(threat_model, steps=10, step_size=threat_model.epsilon / 4)
  optimizer = optax.adam(2e-3)

  @jax.jit
  def step(params, state, inputs, targets, key):
    def loss(params, points):
      return losses.cross_entropy(apply(params, points), targets)

    points = attack(key, lambda x: loss(params, x), inputs)
    gradients = jax.grad(lambda p: loss(p, points).mean())(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  rng = np.random.default_rng(0)
  for index in range(1500):
    batch = rng.integers(0, len(images), 100)
    key = jax.random.fold_in(jax.random.key(1), index)
    params, state = step(params, state, images[batch], labels[batch], key)
  return params


def in_torch(params):
  """The same network for images [B, 1, 8, 8]."""
  layers = [torch.nn.Flatten()]
  for weights, bias in params:
    layer = torch.nn.Linear(*weights.shape)
    layer.weight.data = torch.tensor(np.asarray(weights).T)
    layer.bias.data = torch.tensor(np.asarray(bias))
    layers += [layer, torch.nn.ReLU()]
  return torch.nn.Sequential(*layers[:-1])


def our_attacks(threat_model):
  """Each of the ensemble's attacks with one restart and nine targets."""
  return {
    "apgd-ce": attacks.apgd(threat_model),
    "apgd-dlr": attacks.apgd(threat_model, loss="dlr"),
    "apgd-t": attacks.apgd(threat_model, loss="targeted_dlr"),
    "fab": attacks.fab(threat_model, targets=None),
    "fab-t": attacks.fab(threat_model),
    "square": attacks.square(threat_model),
  }


def their_attacks(network, threat_model, seed):
  """The same of pyautoattack."""
  common = {
    "norm": _THEIR_NAMES[threat_model.norm],
    "eps": threat_model.epsilon,
    "seed": seed,
    "device": "cpu",
  }
  apgd = {"eot_iter": 1, "use_largereps": threat_model.norm == "l1"}
  return {
    "apgd-ce": APGDAttack(network, loss="ce", **apgd, **common),
    "apgd-dlr": APGDAttack(network, loss="dlr", **apgd, **common),
    "apgd-t": APGDAttack_targeted(network, n_target_classes=9, **apgd, **common),
    "fab": FABAttack_PT(network, targeted=False, **common),
    "fab-t": FABAttack_PT(network, targeted=True, n_target_classes=9, **common),
    "square": SquareAttack(network, n_queries=5000, resc_schedule=True, **common),
  }


def robust_accuracy(network, threat_model, images, points, labels):
  """In PyTorch; a point outside the ball breaks nothing."""
  sizes = np.asarray(threat_model.size(np.asarray(points - images)))
  inside = torch.tensor(sizes <= threat_model.epsilon * 1.001)[:, None, None, None]
  with torch.no_grad():
    logits = network(torch.where(inside, points, images))
  return float((logits.argmax(1) == labels).double().mean())


def mean(values):
  """Mean and standard error, as text."""
  error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
  return f"{np.mean(values):.4f} ± {error:.4f}"


def compare(threat_model):
  """Prints a row for each attack."""
  norm = threat_model.norm
  (images, labels), (test_images, test_labels) = digits()
  params = train(threat_model, images, labels)
  network = in_torch(params)
  their_images = torch.tensor(test_images.transpose(0, 3, 1, 2))
  their_labels = torch.tensor(test_labels.astype(np.int64))
  model = jax.tree_util.Partial(apply, params)

  def judge(points):
    return robust_accuracy(network, threat_model, their_images, points, their_labels)

  def row(name, ours, theirs):
    results = []
    for run in (ours, theirs):
      began = time.perf_counter()
      points = [run(seed) for seed in range(_SEEDS.value)]
      seconds = (time.perf_counter() - began) / _SEEDS.value
      results += [mean([judge(p) for p in points]), f"{seconds:.1f}"]
    print("|", " | ".join([norm, name, *results]), "|", flush=True)

  def to_torch(points):
    return torch.tensor(np.array(points).transpose(0, 3, 1, 2))

  clean = judge(their_images)
  print(f"| {norm} | (clean) | {clean:.4f} | | {clean:.4f} | |")
  for name, attack in our_attacks(threat_model).items():
    compiled = jax.jit(attack)

    def ours(seed, compiled=compiled):
      return to_torch(compiled(jax.random.key(seed), model, test_images, test_labels))

    def theirs(seed, name=name):
      attack = their_attacks(network, threat_model, seed)[name]
      return attack.perturb(their_images, their_labels).detach()

    row(name, ours, theirs)

  evaluate = ddi_jax.autoattack(threat_model)

  def ours_together(seed):
    key = jax.random.key(seed)
    return to_torch(evaluate(key, model, test_images, test_labels).adversarial)

  def theirs_together(seed):
    name, epsilon = _THEIR_NAMES[norm], threat_model.epsilon
    attack = AutoAttack(network, norm=name, eps=epsilon, seed=seed, device="cpu")
    return attack.run_standard_evaluation(their_images, their_labels)[0]

  row("standard", ours_together, theirs_together)


def main(_):
  """Prints the table."""
  torch.set_num_threads(1)
  print(describe_machine("jax", "torch", "pyautoattack"))
  print("\n| norm | attack | here | s | pyautoattack | s |\n|---|---|---|---|---|---|")
  for norm in _NORMS.value:
    compare(_THREAT_MODELS[norm])


if __name__ == "__main__":
  app.run(main)
