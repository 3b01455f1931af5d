"""Unions of threat models at equal compute: MAX, AVG, MSD, DDi, proximal form.

python -m experiments.union --config=experiments/configs/union.py --data_dir=DIR

A budget may follow the config file after a colon:

- "small" (the default): MNIST, and CIFAR-10 with the small net; 3 seeds, on a CPU.
- "mlp": MNIST with a fully connected network and Adam; 3 seeds, on a CPU.
- "resnet18": ResNet-18 on CIFAR-10.  It needs a GPU.
- "debug": a test of a few seconds on the digits.
"""

import ml_collections

from configs import cifar10_union, digits, mnist_union
from experiments.configs import start
from experiments.union import BASELINES

BUDGETS = ("small", "mlp", "resnet18", "debug")


def get_config(budget: str = "small") -> ml_collections.ConfigDict:
  """The experiment with a budget."""
  config = start("union", budget, BUDGETS)
  config.arms = (
    *BASELINES,
    "DDi",
    "proximal, per batch",
    "proximal",
    "proximal, t = 0.5",
  )
  config.sweep_seed = 0
  config.seeds = (1, 2, 3)  # Seeds of the runs that are compared.
  config.training = ml_collections.ConfigDict()  # Training configs by setting.
  config.learning_rates = ml_collections.ConfigDict()
  if budget == "debug":
    config.arms = ("MAX", "proximal")
    config.seeds = (1,)
    config.training.digits = digits.get_config("debug")
    config.training.digits.evaluation.norms = ("linf", "l2", "l1")
    config.learning_rates.digits = (0.05,)
  elif budget == "mlp":
    # Adam's steps do not have lengths in the units of t.
    config.arms = (
      *BASELINES,
      "DDi",
      "proximal, t = 0.5",
      "proximal, t = 3",
      "proximal, t = 10",
    )
    config.training.mnist_mlp = mnist_union.get_config()
    mlp = config.training.mnist_mlp
    mlp.model.name = "mlp"
    mlp.radii.linf, mlp.radii.l2, mlp.radii.l1 = 0.15, 1.5, 10.0
    mlp.attack.warmup_epochs = 0.0
    mlp.attack.steps = 8
    mlp.num_epochs = 1.0
    mlp.evaluation.every_epochs = 0.5
    mlp.optimizer.name = "adam"
    config.learning_rates.mnist_mlp = (1e-3, 2e-3, 4e-3)
  elif budget == "resnet18":
    config.training.cifar10 = cifar10_union.get_config()
    config.learning_rates.cifar10 = (0.01, 0.03, 0.1)
  else:
    config.training.mnist = mnist_union.get_config()
    config.learning_rates.mnist = (0.015, 0.05, 0.15)
    config.training.cifar10_small = cifar10_union.get_config()
    small = config.training.cifar10_small
    small.model.name = "small"
    small.model.strides = (2, 2)
    small.model.normalization = "none"
    config.learning_rates.cifar10_small = (0.01, 0.03, 0.1)
    for settings in (config.training.mnist, small):
      settings.model.width, settings.model.hidden = 8, 64
      settings.data.limit = 6_000
      settings.attack.steps = 5
      settings.num_epochs = 5.0
      settings.evaluation.every_epochs = 2.5
      settings.evaluation.steps = 20
      settings.evaluation.test_limit = 1000
  return config.lock()
