"""scikit-learn's 8x8 digits, l_inf epsilon 0.15: the first run.

python launch.py --config=configs/digits.py
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" is a few steps of the same."""
  config = training.default_config()
  config.attack.epsilon = 0.15
  config.num_epochs = 40.0
  config.batch_size = 64
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = "cosine"
  config.evaluation.every_epochs = 4.0
  if variant == "debug":
    config.num_epochs = 1.0
  return config
