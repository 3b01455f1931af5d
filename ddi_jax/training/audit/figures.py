"""Figures of an evaluation: the curve over the radius, and adversarial examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddi_jax.training.storage import pictures


class AdversarialExample(NamedTuple):
  """One column of the grid of examples.

  Attributes:
    clean: the clean image `[H, W, C]` in [0, 1], with C 1 or 3.
    adversarial: the adversarial image `[H, W, C]`.
    label: name of the true class, which the model predicts for the clean image.
    wrong_label: name of the class that it predicts for the adversarial image.
    confidence: the wrong class's probability.
    attack: name of the attack that found the adversarial image.
  """

  clean: np.ndarray
  adversarial: np.ndarray
  label: str
  wrong_label: str
  confidence: float
  attack: str


def save_curve(path: Path, result: Mapping[str, Any], title: str) -> None:
  """Plot robust accuracy against epsilon, and the results at the config's epsilon.

  Args:
    path: where to save the figure.
    result: the content of evaluation.json, with a curve.
    title: title of the figure.
  """
  curve, pgd = result["curve"], result["pgd"]
  epsilon = result["epsilon"]
  style = {"axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
  with pictures.saved_figure(path, (6, 4), style) as figure:
    axes = figure.subplots()
    low, high = np.transpose(curve["intervals"])
    axes.fill_between(curve["epsilons"], low, high, alpha=0.2, lw=0)
    attacks = " + ".join(curve["attacks"])
    axes.plot(
      curve["epsilons"],
      curve["robust_accuracy"],
      marker="o",
      markersize=4,
      label=f"{attacks}, {curve['examples']:,} images",
    )
    for name, marker, label in (
      ("robust_accuracy", "^", "PGD"),
      ("calibrated_robust_accuracy", "v", "PGD at the calibrated temperature"),
    ):
      axes.plot(
        epsilon, pgd[name], marker, color="C2", mfc="none", label=label, zorder=4
      )
    value, (low, high) = result["robust_accuracy"], result["robust_interval"]
    axes.errorbar(
      epsilon,
      value,
      [[value - low], [high - value]],
      fmt="s",
      color="C3",
      capsize=3,
      markersize=5,
      label=f"{result['evaluation']}, {result['examples']:,} images",
    )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"epsilon, {result['norm']} (images are in [0, 1])")
    axes.set_ylabel("robust accuracy, 95 % interval")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)


def save_examples(path: Path, examples: Sequence[AdversarialExample]) -> None:
  """Draw a grid with rows of clean images, scaled changes and adversarial images.

  Args:
    path: where to save the figure.
    examples: at least one example; each is a column.
  """
  changes = [example.adversarial - example.clean for example in examples]
  scale = max(float(np.max(np.abs(change))) for change in changes)
  count = len(examples)
  size = (1.8 + 1.1 * count, 4.4)
  with pictures.saved_figure(path, size, {"font.size": 8}) as figure:
    rows = figure.subplots(3, count, squeeze=False)
    for axes in rows.flat:
      axes.set(xticks=[], yticks=[])
    names = (
      "clean image,\ntrue class above",
      f"change\nwhite +{scale:.2g}\nblack \N{MINUS SIGN}{scale:.2g}",
      "adversarial image,\npredicted class\nbelow",
    )
    for axes, name in zip(rows[:, 0], names, strict=True):
      axes.set_ylabel(
        name, rotation=0, horizontalalignment="right", verticalalignment="center"
      )
    for column, example, change in zip(rows.T, examples, changes, strict=True):
      images = (example.clean, 0.5 + change / (2 * scale or 1), example.adversarial)
      for axes, image in zip(column, images, strict=True):
        shown = image[..., 0] if image.shape[-1] == 1 else np.clip(image, 0, 1)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      column[0].set_title(example.label, fontsize=9)
      column[2].set_xlabel(
        f"{example.wrong_label} ({example.confidence:.0%})\n{example.attack}",
        fontsize=8,
      )
