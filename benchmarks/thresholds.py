"""Time the k-th largest of rows: a bitwise search, `jax.lax.top_k` and a sort.

python benchmarks/thresholds.py

The shapes are those of an l1 attack's step on a batch of MNIST and of CIFAR-10, with 1
% of the coordinates.  The script prints a Markdown table of medians in milliseconds.
"""

import functools

from absl import app
import jax
import jax.numpy as jnp
from machine import describe_machine
import workload

from ddi_jax.numerics.thresholds import kth_largest


def main(_):
  """Print the table."""
  print(describe_machine("jax"))
  print(
    "\n| rows x n | k | by bits (ms) | top_k (ms) | sort (ms) |\n|---|---|---|---|---|"
  )
  for rows, size in ((128, 784), (128, 3072)):
    count = round(size / 100)
    values = jnp.abs(jax.random.normal(jax.random.key(0), (rows, size)))
    forms = {
      "bits": lambda x, k=count: kth_largest(x, k),
      "top_k": lambda x, k=count: jax.lax.top_k(x, k)[0][:, -1:],
      "sort": lambda x, k=count: jnp.sort(x, axis=1)[:, -k, None],
    }
    found = {name: jax.jit(form) for name, form in forms.items()}
    assert len({float(form(values).sum()) for form in found.values()}) == 1
    seconds = workload.median_seconds(
      {name: functools.partial(form, values) for name, form in found.items()}
    )
    cells = " | ".join(f"{1e3 * time:.2g}" for time in seconds.values())
    print(f"| {rows} x {size} | {count} | {cells} |")


if __name__ == "__main__":
  app.run(main)
