"""CIFAR-10, l_inf epsilon 0.031: the full setting of Latorre et al. (2023).

  python launch.py --config=configs/cifar10.py --config.data.data_dir=DIR
  python launch.py --config=configs/cifar10.py:debug --config.data.data_dir=DIR

The network is ResNet-18 with CELU and GroupNorm, which the paper calls "no BatchNorm".
With K = 10, unit-norm steps and 200 epochs of batch 128, the run makes 624,000 attacks
of 7 steps.  It needs an accelerator.  We have not run it to its end, so no result is
promised.  For two CPU cores see cifar10_small.py.  Augmentation is pad-crop and flip
only, without the paper's mild colour jitter and rotation.
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes a few steps with a network of width 8."""
  config = training.default_config()
  config.data.name = "cifar10"
  config.data.validation_size = 10_000
  config.data.pad = 4
  config.data.flip = True
  config.method = "danskin"
  config.num_restarts = 10
  config.unit_norm = True
  config.batch_size = 128
  config.num_epochs = 200.0
  config.attack.epsilon = 0.031
  config.attack.steps = 7
  config.attack.step_size = 0.00797
  config.model.name = "resnet18"
  config.model.width = 64
  config.model.activation = "celu"
  config.model.normalization = "group"
  config.model.norm_groups = 32
  config.optimizer.learning_rate = 0.1
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule = "step"
  if variant == "debug":
    config.model.width = 8
    config.model.norm_groups = 8
    config.num_restarts = 2
  return training.select_variant(config, variant)
