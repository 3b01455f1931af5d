"""A training step of a tiny network for 8x8 images, built as the program builds it."""

import numpy as np

from ddi_jax import data, training

SPLITS = data.Splits(None, None, None, 16, 10, (0.3,), (0.4,))


class Step:
  """The program's jitted step, called with images, labels and indices."""

  def __init__(self, experiment):
    self.experiment = experiment

  def __call__(self, state, images, labels, indices=None):
    batch, hyperparameters = self._arguments(images, labels, indices)
    return self.experiment.train_step(state, batch, hyperparameters)

  def lower(self, state, images, labels, indices=None):
    batch, hyperparameters = self._arguments(images, labels, indices)
    return self.experiment.train_step.lower(state, batch, hyperparameters)

  def num_programs(self):
    return self.experiment.train_step._cache_size()

  def _arguments(self, images, labels, indices):
    batch = {"image": images, "label": labels}
    if indices is not None:
      batch["index"] = indices
    return batch, self.experiment.hyperparameters


def build(config, *, steps_per_epoch=10, **settings):
  """The network, the state, and the step."""
  size = steps_per_epoch * config.batch_size
  images = np.zeros((size, 8, 8, 1), np.uint8)
  examples = data.Dataset(images, np.zeros(size, np.int32))
  splits = SPLITS._replace(train=examples, validation=examples, test=examples)
  experiment = training.create_experiment(config, splits, **settings)
  return experiment.apply, experiment.start(), Step(experiment)
