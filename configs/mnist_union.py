"""MNIST in the union of three threat models: l_inf 0.3, l2 2.0 and l1 10.

  python launch.py --config=configs/mnist_union.py --config.data.data_dir=DIR
  python launch.py --config=configs/mnist_union.py:debug --config.data.data_dir=DIR

One PGD attack in each norm makes three candidates, from which the proximal form takes
its gradient (docs/sources.md).  Flags choose other methods on the same code path:

  MAX, Tramer and Boneh (2019): --config.method=worst_restart
  AVG, from the same paper: --config.method=average
  MSD, Maini et al. (2020): --config.method=pgd --config.sources="('msd',)"
  a single threat model: --config.method=pgd --config.sources="('l2',)"

The test attacks are longer, with one attack in each norm.  An example counts as robust
if it is classified correctly under all three.  We have not made the full run yet, so no
time and no result is promised.
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes only a few steps."""
  config = training.default_config()
  config.data.name = "mnist"
  config.data.validation_size = 10_000
  config.method = "proximal"
  config.sources = ("linf", "l2", "l1")
  config.radii.linf = 0.3
  config.radii.l2 = 2.0
  config.radii.l1 = 10.0
  config.attack.steps = 10
  config.attack.warmup_epochs = 2.0
  config.model.name = "small"
  config.model.strides = (2, 2)
  config.model.hidden = 100
  config.model.activation = "celu"
  config.num_epochs = 5.0
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = "cosine"
  config.evaluation.norms = ("linf", "l2", "l1")
  config.evaluation.steps = 40
  config.evaluation.validation_limit = 1000
  config.evaluation.test_limit = 2000
  return training.select_variant(config, variant)
