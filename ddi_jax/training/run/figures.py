"""The figure `curves.png`, which shows a run's metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddi_jax.training.storage import pictures
from ddi_jax.training.storage.logs import read_metrics

# Told apart without colours, too.
ROBUST: dict[str, Any] = {"marker": "o", "linestyle": "--"}
CLEAN: dict[str, Any] = {"marker": "s", "linestyle": "-."}


def save_curves(workdir: Path, title: str) -> Path:
  """Plot a run's metrics: losses, accuracies, and relations of the K gradients.

  Args:
    workdir: the run's folder.
    title: title of the figure.

  Returns:
    The figure's path.
  """
  from matplotlib import ticker  # noqa: PLC0415, it takes half a second

  records = list(read_metrics(workdir))
  train = [record for record in records if record["split"] == "train"]
  validation = [record for record in records if record["split"] == "validation"]
  path = workdir / "curves.png"
  style = {"axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
  with pictures.saved_figure(path, (12, 4.4), style) as figure:
    figure.suptitle(title, fontsize=10)
    loss, accuracy, gradients = figure.subplots(1, 3)
    attacked = any("robust_accuracy" in record for record in train)
    batch = f"train batch, {'adversarial' if attacked else 'clean'}"
    _plot(loss, train, "loss", batch, smooth=True, alpha=0.8)
    _plot(loss, validation, "robust_loss", "validation, adversarial", **ROBUST)
    _plot(loss, validation, "clean_loss", "validation, clean", **CLEAN)
    loss.set_ylabel("cross entropy (nats)")
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(ticker.NullFormatter())
    field = "robust_accuracy" if attacked else "accuracy"
    _plot(accuracy, train, field, batch, smooth=True, alpha=0.8)
    _plot(accuracy, validation, "robust_accuracy", "validation, robust", **ROBUST)
    _plot(accuracy, validation, "clean_accuracy", "validation, clean", **CLEAN)
    _plot(accuracy, validation, "mean_confidence", "mean confidence", linestyle=":")
    accuracy.set_ylim(0, 1)
    accuracy.set_ylabel("fraction of examples")
    _plot(gradients, train, "direction/cosine", "mean cosine of pairs", smooth=True)
    _plot(
      gradients,
      train,
      "direction/min_cosine",
      "least cosine",
      smooth=True,
      linestyle="--",
    )
    _plot(
      gradients,
      train,
      "direction/relative_norm",
      "norm / smallest gradient",
      smooth=True,
      linestyle=":",
    )
    _plot(
      gradients,
      train,
      "proximal/share_of_worst",
      "weight on worst candidates",
      smooth=True,
      linestyle="-.",
    )
    gradients.set_ylabel("the K gradients or candidates (no unit)")
    # Do not magnify rounding errors if all gradients agree.
    low, high = gradients.get_ylim()
    gradients.set_ylim(min(0.98, low), max(1.005, high))
    gradients.ticklabel_format(axis="y", useOffset=False)
    for axes in (loss, accuracy, gradients):
      axes.set_xlabel("step")
      if axes.lines:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17))
  return path


def _plot(
  axes: Any,
  records: Sequence[dict[str, Any]],
  name: str,
  label: str,
  *,
  smooth: bool = False,
  **style: Any,
) -> None:
  """Plot a metric by step; plot nothing if no record has it."""
  records = [record for record in records if name in record]
  if not records:
    return
  steps = np.array([record["step"] for record in records])
  values = np.array([record[name] for record in records], float)
  window = max(1, len(values) // 100) if smooth else 1
  if window > 1:
    label += f" (mean of {window} steps)"
    count = len(values) // window * window
    steps = steps[:count].reshape(-1, window)[:, -1]
    values = values[:count].reshape(-1, window).mean(axis=1)
  style.setdefault("markersize", 3)
  axes.plot(steps, values, label=label, **style)
