"""MNIST, l_inf epsilon 0.3, with a small convolutional net for two CPU cores.

  python launch.py --config=configs/mnist.py --config.data.data_dir=DIR
  python launch.py --config=configs/mnist.py:debug --config.data.data_dir=DIR

Expect 8 minutes on two cores and .97 clean, .89 robust test accuracy
(`--config.method=standard`: 1 minute, .98 and .00).

The radius grows over the first two epochs.  With a radius of 0.3 from the start,
training stays at a constant prediction (loss 2.30).
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes only a few steps."""
  config = training.default_config()
  config.data.name = "mnist"
  config.data.validation_size = 10_000
  config.attack.epsilon = 0.3
  config.attack.steps = 10
  config.attack.step_size = 0.075
  config.attack.warmup_epochs = 2.0
  config.model.name = "small"
  config.model.strides = (2, 2)
  config.model.hidden = 100
  config.num_epochs = 5.0
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = "cosine"
  config.evaluation.validation_limit = 1000
  return training.select_variant(config, variant)
