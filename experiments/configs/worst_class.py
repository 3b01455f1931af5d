"""Worst-class robustness: AVG, MAX, group DRO, DDi and its bundle form.

python -m experiments.worst_class --config=experiments/configs/worst_class.py \
  --data_dir=DIR

A budget may follow the config file after a colon:

- "small" (the default): MNIST with a fully connected network; 5 seeds, on a CPU.
- "cifar10": CIFAR-10 with the small network; 3 seeds.  Not run yet.
- "debug": a test of a few seconds on the digits.
"""

import ml_collections

from configs import cifar10_small, digits, mnist
from experiments.configs import start
from experiments.worst_class import ARMS

BUDGETS = ("small", "cifar10", "debug")


def get_config(budget: str = "small") -> ml_collections.ConfigDict:
  """The experiment with a budget."""
  config = start("worst_class", budget, BUDGETS)
  config.arms = tuple(ARMS)
  config.sweep_seed = 0
  config.seeds = (1, 2, 3, 4, 5)  # Seeds of the runs that are compared.
  config.training = ml_collections.ConfigDict()  # Training configs by setting.
  config.learning_rates = ml_collections.ConfigDict()
  if budget == "debug":
    config.arms = ("AVG", "DDi, t = 0.1")
    config.seeds = (1,)
    config.training.digits = digits.get_config("debug")
    config.learning_rates.digits = (2e-3,)
  elif budget == "cifar10":
    config.seeds = (1, 2, 3)
    config.training.cifar10_small = cifar10_small.get_config()
    config.training.cifar10_small.model.width = 8
    config.training.cifar10_small.num_epochs = 3.0
    config.learning_rates.cifar10_small = (2e-3, 4e-3)
  else:
    config.training.mnist_mlp = mnist.get_config()
    mlp = config.training.mnist_mlp
    mlp.model.name = "mlp"
    mlp.model.activation = "celu"
    mlp.attack.epsilon = 0.15
    mlp.attack.step_size = None
    mlp.num_epochs = 1.6  # 400 steps.
    config.learning_rates.mnist_mlp = (2e-3, 4e-3, 8e-3, 16e-3)
  for settings in config.training.values():
    settings.method = "pgd"  # One attack in each step; the arm chooses the direction.
    settings.batch_size = 100 if budget == "debug" else 200
    settings.attack.steps = 7
    settings.attack.warmup_epochs = 0.0
    settings.optimizer.name = "adam"
    settings.optimizer.schedule = "cosine"
    settings.optimizer.weight_decay = 0.0
    settings.data.pad, settings.data.flip = 0, False
    settings.evaluation.steps = 20
    settings.evaluation.restarts = 1
    settings.evaluation.validation_limit = 5_000
    settings.evaluation.test_limit = None
  return config.lock()
