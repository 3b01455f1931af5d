"""CIFAR-10, l_inf epsilon 8/255, with a small convolutional net for two CPU cores.

python launch.py --config=configs/cifar10_small.py --config.data.data_dir=DIR
python launch.py --config=configs/cifar10_small.py:debug --config.data.data_dir=DIR

Expect 3 minutes on two cores and .33 clean, .22 robust accuracy on 2,000 test images
(`--config.method=standard`: 1 minute, .48 and .00).
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes only a few steps."""
  config = training.default_config()
  config.data.name = "cifar10"
  config.data.validation_size = 10_000
  config.data.pad = 4
  config.data.flip = True
  config.num_restarts = 2
  config.num_epochs = 4.0
  config.attack.epsilon = 8 / 255
  config.attack.warmup_epochs = 1.0
  config.attack.steps = 7
  config.model.name = "small"
  config.model.width = 16
  config.model.hidden = 128
  config.model.strides = (2, 2)
  config.model.activation = "celu"
  config.optimizer.learning_rate = 0.02
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule = "cosine"
  config.evaluation.every_epochs = 0.5
  config.evaluation.validation_limit = 1000
  config.evaluation.test_limit = 2000
  return training.select_variant(config, variant)
