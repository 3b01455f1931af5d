"""The figure and tables for worst-class robustness in docs/sources.md."""

from collections.abc import Iterator

from matplotlib.figure import Figure
import pandas as pd

from experiments import comparison
from experiments.worst_class import BASELINES

FIELDS = {
  "worst_class": "worst class",
  "robust_accuracy": "all classes",
  "clean_accuracy": "clean",
  "worst_class_loss": "greatest robust loss of a class",
}


def draw(runs: pd.DataFrame) -> Figure:
  """Plot each run's worst class against the mean of all, with a panel per setting."""
  figure, panels = comparison.panels(runs, 3.8)
  for panel, of_setting in panels:
    for which, arm in enumerate(comparison.ranked_arms(of_setting, "worst_class")):
      of_arm = of_setting[of_setting["arm"] == arm]
      panel.plot(
        of_arm["robust_accuracy"],
        of_arm["worst_class"],
        "oDs^vPX*"[which % 8],
        color=f"C{which}",
        alpha=0.8,
        label=arm,
      )
    panel.set_xlabel("robust accuracy, all classes")
    panel.set_ylabel("robust accuracy, worst class")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
  return figure


def tables(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
  """(setting, Markdown table) with means and standard deviations over the seeds."""
  for setting, rows in runs.groupby("setting", sort=False):
    yield (
      str(setting),
      comparison.table(
        rows,
        "worst_class",
        "worst class",
        BASELINES,
        comparison.columns_of(FIELDS),
      ),
    )
