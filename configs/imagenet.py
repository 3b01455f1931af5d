"""ImageNet, l_inf epsilon 4/255, ResNet-50: for accelerators.

python launch.py --config=configs/imagenet.py --config.data.data_dir=DIR
python launch.py --config=configs/imagenet.py:debug --config.data.data_dir=DIR

DIR holds `imagenet2012`, prepared by TensorFlow Datasets in the ArrayRecord format.
Images are streamed from DIR, cropped at random and resized to 224x224; they are not
kept in memory.  The settings are usual for adversarial training (batch 256, 90 epochs,
PGD-2), with K = 4 restarts.  We have not run it, so no time and no result is promised.
"""

from ddi_jax import training


def get_config(variant: str = "full"):
  """The experiment; "debug" takes a few steps with width 8 and 64x64 images."""
  config = training.default_config()
  config.data.name = "imagenet2012"
  config.data.resolution = 224
  config.data.streaming = "always"
  config.data.validation_size = 10_000
  config.data.flip = True
  config.method = "danskin"
  config.num_restarts = 4
  config.batch_size = 256
  config.num_epochs = 90.0
  config.attack.epsilon = 4 / 255
  config.attack.steps = 2
  config.model.name = "resnet50"
  config.model.width = 64
  config.model.normalization = "group"
  config.model.norm_groups = 32
  config.optimizer.learning_rate = 0.1
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule = "cosine"
  config.evaluation.every_epochs = 5.0
  config.evaluation.batch_size = 128
  if variant == "debug":
    config.data.resolution = 64
    config.model.width = 8
    config.model.norm_groups = 8
    config.num_restarts = 2
  return training.select_variant(config, variant)
