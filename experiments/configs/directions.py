"""Directions: compare how much each lowers the robust loss.

python -m experiments.directions --config=experiments/configs/directions.py \
  --data_dir=DIR

A budget may follow the config file after a colon:

- "small" (the default): small nets, a few thousand images and 6 batches in each phase.
  It takes 8 runs of about two minutes on one CPU core.
- "full": the widths in the configs, with more restarts, batches, phases and data.
- "resnet18": the paper's ResNet-18, on CIFAR-10 only.  It needs a GPU.  Not run yet.
- "debug": a test of a few seconds on the digits.
"""

import ml_collections

from configs import cifar10, cifar10_small, digits, mnist
from ddi_jax.training import drop_unused
from experiments.configs import start

BUDGETS = ("small", "full", "resnet18", "debug")
NETWORKS = {
  "celu_group": ("celu", "group"),
  "relu_group": ("relu", "group"),
  "relu_batch": ("relu", "batch"),
  "celu_none": ("celu", "none"),
}


def get_config(budget: str = "small") -> ml_collections.ConfigDict:
  """The experiment with a budget."""
  config = start("directions", budget, BUDGETS)
  config.seeds = (0,)
  config.measurement = ml_collections.ConfigDict()
  config.measurement.phases = (0.0, 0.25, 1.0, 3.0)  # Epochs of PGD training.
  config.measurement.batches = 6  # Number of batches; each gives all directions.
  config.measurement.batch_size = 24
  config.measurement.num_restarts = 4  # K of the directions.  Training uses PGD.
  config.measurement.step_lengths = (0.03, 0.1, 0.3)  # Lengths of steps.
  # Arguments of DDi's two inexact forms, see `ddi_jax.danskin_direction`.
  config.measurement.loss_tolerance = 0.003
  config.measurement.bundle_step = 0.1
  bases = {"mnist": mnist.get_config(), "cifar10": cifar10_small.get_config()}
  networks = NETWORKS
  if budget == "small":
    bases["mnist"].attack.warmup_epochs = 1.0
    for settings in bases.values():
      settings.data.limit = 4000
      settings.restarts_at_a_time = 1  # For one core, and less to compile.
      settings.batch_size = 64
      settings.model.width = 8
      settings.model.hidden = 64
      settings.model.norm_groups = 4
      settings.attack.steps = 5
      settings.attack.step_size = None  # 2.5 epsilon / steps.
      settings.evaluation.steps = 10  # Steps of the attack that measures robust loss.
  elif budget == "full":
    config.measurement.phases = (0.0, 0.25, 1.0, 3.0, 10.0)
    config.measurement.batches = 32
    config.measurement.batch_size = 128
    config.measurement.num_restarts = 10
    for settings in bases.values():
      settings.evaluation.steps = 40
  elif budget == "resnet18":
    config.measurement.phases = (0.0, 0.25, 1.0, 3.0, 10.0)
    config.measurement.batches = 16
    config.measurement.batch_size = 128
    config.measurement.num_restarts = 10
    bases = {"cifar10": cifar10.get_config()}
  else:
    config.measurement.phases = (0.0, 1.0)
    config.measurement.batches = 2
    config.measurement.batch_size = 16
    bases = {"digits": digits.get_config("debug")}
    config.measurement.num_restarts = 2
    bases["digits"].restarts_at_a_time = 1
    bases["digits"].model.width = 2
    networks = {"celu_none": NETWORKS["celu_none"]}
  config.training = ml_collections.ConfigDict()  # Training configs by setting.
  for data, base in bases.items():
    base.method = "pgd"
    base.unit_norm = False
    base.optimizer.schedule = "constant"
    base.num_epochs = max(config.measurement.phases)
    base.evaluation.restarts = 2
    for name, (activation, normalization) in networks.items():
      settings = base.copy_and_resolve_references()
      settings.model.activation = activation
      settings.model.normalization = normalization
      config.training[f"{data}_{name}"] = drop_unused(settings)
  return config.lock()
