"""scikit-learn's 8x8 digits, l_inf epsilon 0.15: a first run without downloads.

python launch.py --config=configs/digits.py          # the whole run
python launch.py --config=configs/digits.py:debug    # a test run of a few seconds

Expect about a minute on two cores and .98 clean, .75 to .80 robust test accuracy.
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes only a few steps."""
  config = training.default_config()
  config.data.name = "digits"
  config.attack.epsilon = 0.15
  config.model.name = "small"
  config.num_epochs = 30.0
  config.batch_size = 64
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = "cosine"
  config.evaluation.every_epochs = 3.0
  return training.select_variant(config, variant)
