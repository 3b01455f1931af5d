"""A fully connected network."""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax

from ddi_jax.checks import check_choice
from ddi_jax.models import layers as parts


class MLP(nnx.Module):
  """Dense layers on the flattened image, without normalisation.

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    layers: number of units of each hidden layer.  Without any, the network is a linear
      classifier.
    activation: one of `layers.ACTIVATIONS`.
    rngs: random streams, which must include "params".
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    layers: Sequence[int] = (256, 128),
    activation: str = "relu",
    rngs: nnx.Rngs,
  ) -> None:
    check_choice("activation", activation, parts.ACTIVATIONS)
    is_sequence = isinstance(layers, (tuple, list))
    if not is_sequence or not all(isinstance(n, int) and n >= 1 for n in layers):
      raise ValueError(f"layers must be a tuple of integers >= 1, got {layers!r}.")
    height, breadth, channels = image_shape
    self.standardize = parts.Standardize(mean, std)
    self.activation = parts.ACTIVATIONS[activation]
    sizes = (height * breadth * channels, *layers)
    self.hidden = nnx.List(
      nnx.Linear(fan_in, fan_out, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
      for fan_in, fan_out in itertools.pairwise(sizes)
    )
    self.logits = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.standardize(inputs).reshape(len(inputs), -1)
    for layer in self.hidden:
      x = self.activation(layer(x))
    return self.logits(x)
