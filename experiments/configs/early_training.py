"""Early training: compare how fast methods gain robust accuracy.

python -m experiments.early_training --config=experiments/configs/early_training.py \
  --data_dir=DIR
python -m experiments.early_training \
  --config=experiments/configs/early_training.py:resnet18 --data_dir=DIR

A budget may follow the config file after a colon:

- "small" (the default): small nets, 1,500 images and few steps of the attack.  It takes
  77 runs of some 10 seconds each on one CPU core.
- "full": the nets in the configs and all the data, 10 epochs, 5 seeds.  It takes hours
  on an accelerator.
- "resnet18": the first 10 epochs of the paper's ResNet-18 on CIFAR-10, with CELU and
  GroupNorm, and with ReLU and BatchNorm as a negative control.  It needs a GPU.  Not
  run yet.
- "debug": a test of a few seconds on the digits.
"""

import ml_collections

from configs import cifar10, cifar10_small, digits, mnist
from experiments.configs import start
from experiments.early_training import ARMS

BUDGETS = ("small", "full", "resnet18", "debug")


def get_config(budget: str = "small") -> ml_collections.ConfigDict:
  """The experiment with a budget."""
  config = start("early_training", budget, BUDGETS)
  config.arms = tuple(ARMS)
  # Learning rates by setting, the same for every method.
  config.learning_rates = ml_collections.ConfigDict()
  config.sweep_seed = 0
  config.seeds = (1, 2, 3)  # Seeds of the runs that are compared.
  config.training = ml_collections.ConfigDict()  # Training configs by setting.
  if budget == "small":
    config.training.mnist = _small(mnist.get_config())
    config.training.mnist.num_restarts = 3
    config.learning_rates.mnist = (0.015, 0.05, 0.15)
    config.training.cifar10_small = _small(cifar10_small.get_config())
    config.training.cifar10_small.data.limit = 1000
    config.training.cifar10_small.num_epochs = 4.0
    config.training.cifar10_small.evaluation.validation_limit = 256
    config.learning_rates.cifar10_small = (0.005, 0.015)
  elif budget == "full":
    config.seeds = (1, 2, 3, 4, 5)
    config.training.mnist = mnist.get_config()
    config.learning_rates.mnist = (0.005, 0.015, 0.05, 0.15)
    config.training.cifar10_small = cifar10_small.get_config()
    config.learning_rates.cifar10_small = (0.002, 0.005, 0.015, 0.05)
  elif budget == "resnet18":
    config.training.celu_group = cifar10.get_config()
    config.training.relu_batch = cifar10.get_config()
    config.training.relu_batch.model.activation = "relu"
    config.training.relu_batch.model.normalization = "batch"
    config.learning_rates.celu_group = (0.01, 0.03, 0.1)
    config.learning_rates.relu_batch = (0.01, 0.03, 0.1)
  else:
    config.arms = ("pgd", "danskin")
    config.learning_rates.digits = (0.05,)
    config.seeds = (1,)
    config.training.digits = digits.get_config("debug")
    config.training.digits.num_restarts = 2
    config.training.digits.model.width = 2
  config.settings = tuple(sorted(config.training, reverse=True))  # Order of the runs.
  for settings in config.training.values():
    if budget in ("full", "resnet18"):
      settings.num_epochs = 10.0
    # With another schedule, the first epochs would depend on a run's length.
    settings.optimizer.schedule = "constant"
    settings.evaluation.every_epochs = 1.0 if budget == "small" else 0.5
  return config.lock()


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  config.data.limit = 1500
  config.batch_size = 32
  config.num_epochs = 5.0
  config.restarts_at_a_time = 1  # For one core, and less to compile.
  config.model.width = 8
  config.model.hidden = 64
  config.attack.steps = 5
  config.attack.step_size = None  # 2.5 epsilon / steps.
  config.evaluation.steps = 10
  config.evaluation.validation_limit = 512
  config.evaluation.test_limit = 512
  return config
