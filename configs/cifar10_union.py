"""CIFAR-10 in the union of three threat models: l_inf 0.03, l2 0.5 and l1 12.

  python launch.py --config=configs/cifar10_union.py --config.data.data_dir=DIR
  python launch.py --config=configs/cifar10_union.py:debug --config.data.data_dir=DIR

The radii are those of Maini et al. (2020).  The network is ResNet-18 (CELU, GroupNorm),
which needs an accelerator.  We have not run it to its end, so no time and no result is
promised.  For two CPU cores add
`--config.model.name=small --config.model.width=16 --config.num_epochs=4`.  The flags
for the baselines are those in mnist_union.py.
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes a few steps with a small network."""
  config = training.default_config()
  config.data.name = "cifar10"
  config.data.validation_size = 10_000
  config.data.pad = 4
  config.data.flip = True
  config.method = "proximal"
  config.sources = ("linf", "l2", "l1")
  config.radii.linf = 0.03
  config.radii.l2 = 0.5
  config.radii.l1 = 12.0
  config.attack.steps = 10
  config.attack.warmup_epochs = 1.0
  config.num_epochs = 50.0
  config.model.name = "resnet18"
  config.model.width = 64
  config.model.activation = "celu"
  config.model.normalization = "group"
  config.model.norm_groups = 32
  config.optimizer.learning_rate = 0.05
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule = "cosine"
  config.evaluation.norms = ("linf", "l2", "l1")
  config.evaluation.validation_limit = 1000
  config.evaluation.test_limit = 2000
  if variant == "debug":
    config.model.name = "small"  # ResNet-18 takes more than a minute to compile.
    config.model.strides = (2, 2)
    config.model.width = 8
    config.model.norm_groups = 8
  return training.select_variant(config, variant)
