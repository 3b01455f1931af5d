"""Time a convolution's gradients, jax's and ours, inside and outside a loop.

python benchmarks/convolution.py

The script prints a Markdown table in milliseconds for the 3x3 convolutions of the small
network on MNIST and of ResNet-18 at width 16, batch 64.
"""

import statistics
import time

import jax
from progress import progress

from ddi_jax.models import conv_general_dilated

BATCH, REPEATS, TURNS = 64, 5, 4
PADDING = ((1, 1), (1, 1))
# Image size, channels in, channels out, stride.
SHAPES = [
  (28, 1, 16, 2),
  (14, 16, 32, 2),
  (32, 3, 16, 1),
  (32, 16, 16, 1),
  (32, 16, 32, 2),
  (16, 32, 32, 1),
  (16, 32, 64, 2),
  (8, 64, 64, 1),
  (8, 64, 128, 2),
  (4, 128, 128, 1),
]


def milliseconds(fn, argument):
  """The median time of a call."""
  jax.block_until_ready(fn(argument))
  times = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(fn(argument))
    times.append(time.perf_counter() - began)
  return 1e3 * statistics.median(times)


def times_of(conv, shape):
  """The times of the inputs' and the kernel's gradient, outside and inside a loop."""
  size, channels, features, stride = shape
  inputs = jax.random.normal(jax.random.key(0), (BATCH, size, size, channels))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, features))

  def apply(inputs, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return conv(inputs, kernel, (stride,) * 2, PADDING, dimension_numbers=numbers)

  cotangent = apply(inputs, kernel)
  for index, argument in enumerate((inputs, kernel)):
    # A convolution is linear in each argument, so its value is not computed here.
    def gradient(point, index=index):
      _, pullback = jax.vjp(apply, inputs, kernel)
      return pullback(cotangent * point.ravel()[0])[index]

    def loop(point, gradient=gradient):
      return jax.lax.fori_loop(0, TURNS, lambda _, x: x + 1e-9 * gradient(x), point)

    yield milliseconds(jax.jit(gradient), argument)
    yield milliseconds(jax.jit(loop), argument) / TURNS


def main():
  """Print the table."""
  print(
    "| size, in, out, stride | inputs' gradient: jax | in a loop | ours | in a loop ",
    end="",
  )
  print("| kernel's gradient: jax | in a loop | ours | in a loop |")
  print("|" + "---|" * 9)
  for shape in progress(SHAPES):
    jaxs = list(times_of(jax.lax.conv_general_dilated, shape))
    ours = list(times_of(conv_general_dilated, shape))
    cells = [*jaxs[:2], *ours[:2], *jaxs[2:], *ours[2:]]
    print(f"| {', '.join(map(str, shape))} | ", end="")
    print(" | ".join(f"{cell:.1f}" for cell in cells), "|", flush=True)


if __name__ == "__main__":
  main()
