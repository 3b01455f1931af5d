"""How the time and memory of a DDi training step grow with K, batch and width.

python benchmarks/growth.py --steps=2 --repeats=2 --picture=docs/images/growth.png

The script changes one of K, batch size and width at a time; flags set the others.
Memory is what XLA plans for arguments, results and temporaries.  An exponent is the
slope between neighbouring values in logarithmic scale; 1 means proportional growth.
The script prints a Markdown table.
"""

import itertools
import math

from absl import app, flags
import matplotlib as mpl
import matplotlib.pyplot as plt
import workload

_COUNTS = flags.DEFINE_list("counts", ["1", "2", "4", "8", "16", "32"], "Values of K.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["16", "32", "64", "128", "256"], "B.")
_WIDTHS = flags.DEFINE_list("widths", ["8", "16", "32", "64"], "Width.")
_PICTURE = flags.DEFINE_string("picture", None, "Where to draw the table, a PNG.")
_MEBI = 2**20


def _grid():
  """A list of (title of the axis, field of the config, values)."""
  return [
    ("K", "num_restarts", [int(text) for text in _COUNTS.value]),
    ("batch size", "batch_size", [int(text) for text in _BATCH_SIZES.value]),
    ("width", "model.width", [int(text) for text in _WIDTHS.value]),
  ]


def _measure(field, values):
  """The (seconds, mebibytes) for each value."""
  steps = {
    value: workload.CompiledStep(workload.create("danskin", {field: value}))
    for value in values
  }
  seconds = workload.median_seconds(steps)
  return [(seconds[value], steps[value].bytes / _MEBI) for value in values]


def _exponent(first, second, ratio):
  return math.log(second / first) / math.log(ratio)


def _draw(measured):
  """Plot time and memory over each axis, in logarithmic scales."""
  mpl.use("Agg")
  figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharey="row", layout="tight")
  for column, ((title, _, values), rows) in enumerate(measured):
    for row, label in enumerate(("seconds a step", "memory (MiB)")):
      axis = axes[row, column]
      found = [pair[row] for pair in rows]
      axis.loglog(values, found, "o-", color="#0072B2", label="measured")
      linear = [found[-1] * value / values[-1] for value in values]
      axis.loglog(values, linear, ":", color="0.5", label="proportional")
      axis.set_xticks(values, [str(value) for value in values], minor=False)
      axis.minorticks_off()
      axis.grid(alpha=0.3)
      axis.set_xlabel(title)
      if not column:
        axis.set_ylabel(label)
  axes[0, 0].legend(frameon=False)
  figure.savefig(_PICTURE.value, dpi=120)


def main(_):
  """Time, print and draw."""
  print(workload.describe() + "\n", flush=True)
  print("| | value | step (s) | exponent | memory (MiB) | exponent |")
  print("|---|---|---|---|---|---|")
  measured = []
  for axis in _grid():
    title, field, values = axis
    rows = _measure(field, values)
    measured.append((axis, rows))
    exponents = [("", "")] + [
      tuple(
        f"{_exponent(old, new, values[index + 1] / values[index]):.2f}"
        for old, new in zip(*pair, strict=True)
      )
      for index, pair in enumerate(itertools.pairwise(rows))
    ]
    for value, row, (of_time, of_memory) in zip(values, rows, exponents, strict=True):
      print(
        f"| {title} | {value} | {row[0]:.3g} | {of_time} | {row[1]:.4g} | "
        f"{of_memory} |",
        flush=True,
      )
  if _PICTURE.value:
    _draw(measured)


if __name__ == "__main__":
  app.run(main)
