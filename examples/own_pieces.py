"""Your own direction, source, model and data set, for the training program.

Run from the repository's folder:

  python launch.py --config=configs/digits.py:debug \
    --config.method=examples.own_pieces:median_direction \
    --config.sources="('examples.own_pieces:noisy_fgsm:3',)" \
    --config.model.name=examples.own_pieces:Network \
    --config.data.name=examples.own_pieces:load_stripes --config.data.limit=None

You can use any one of these pieces together with the library's own pieces.  A config
file sets their arguments: `config.model_settings.hidden = 64`, and likewise
`method_settings`, `source_settings` and `data_settings`.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ddi_jax


def median_direction():
  """The coordinate-wise median of the K gradients.

  A direction may have any state.  This one has none.
  """

  def update(updates, state, params=None, **extra_args):
    return jax.tree.map(lambda leaf: jnp.median(leaf, axis=0), updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def softmax_direction(temperature=1.0, *, normalize=False):
  """The mean of the K gradients, weighted by the softmax of the candidates' losses.

  Args:
    temperature: > 0.  Towards 0, the direction tends to the gradient of the candidate
      with the greatest loss; towards infinity, to the average.
    normalize: whether to scale to unit norm; set to `config.unit_norm`.
  """
  if not temperature > 0:
    raise ValueError(f"temperature must be > 0, got {temperature!r}.")

  def weighting(inputs):
    losses = inputs.required_losses("softmax_direction")
    return jax.nn.softmax(losses / temperature)

  return ddi_jax.weighted_direction(weighting, normalize=normalize)


def noisy_fgsm(count, *, epsilon=0.1):
  """A source of K candidates: one signed step of random length from the inputs.

  Args:
    count: K, the number that follows the name in `config.sources`.
    epsilon: the l_inf radius.
  """
  ball, bounds = ddi_jax.linf(epsilon), (0.0, 1.0)

  def source(key, logits_fn, inputs, labels):
    def loss(points):
      return ddi_jax.losses.cross_entropy(logits_fn(points), labels).sum()

    signs = ball.steepest_ascent(jax.grad(loss)(inputs), inputs, bounds)
    lengths = epsilon * jax.random.uniform(key, (count, len(inputs), 1, 1, 1))
    return jnp.clip(inputs[None] + lengths * signs[None], *bounds)

  return source


class Network(nnx.Module):
  """A model: images `[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""

  def __init__(self, image_shape, num_classes, *, rngs, hidden=32):
    """Every further argument is a setting, except `mean` and `std`.

    If there are arguments of these two names, they are given those of the data.
    """
    self.hidden = nnx.Linear(int(np.prod(image_shape)), hidden, rngs=rngs)
    self.norm = nnx.BatchNorm(hidden, momentum=0.9, rngs=rngs)
    self.logits = nnx.Linear(hidden, num_classes, rngs=rngs)

  def __call__(self, inputs):
    x = self.hidden(inputs.reshape(len(inputs), -1))
    return self.logits(nnx.celu(self.norm(x)))


def load_stripes(size=600):
  """A data set: (training images, training labels, test images, test labels).

  Images are uint8 `[N, H, W, C]` in [0, 255], and labels are integers `[N]`.  This data
  set has noisy images with a bright horizontal, vertical or diagonal stripe.
  """
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, size)
  images = rng.integers(0, 100, (size, 8, 8, 1), np.uint8)
  place = np.arange(8)
  for image, label in zip(images, labels, strict=True):
    row = rng.integers(8)
    rows, columns = ((row, place), (place, row), (place, (place + row) % 8))[label]
    image[rows, columns] += 150
  half = size // 2
  return images[:half], labels[:half], images[half:], labels[half:]
