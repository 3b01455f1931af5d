"""The figure and tables for the comparison at equal compute in docs/sources.md."""

from collections.abc import Iterator

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from experiments import comparison

FIELDS = {
  "robust_accuracy": "union",
  "robust_accuracy_linf": "l_inf",
  "robust_accuracy_l2": "l2",
  "robust_accuracy_l1": "l1",
  "clean_accuracy": "clean",
}


def draw(runs: pd.DataFrame) -> Figure:
  """Plot test accuracies by method, with a panel per setting.

  Each mark is a seed and a test.
  """
  figure, panels = comparison.panels(runs, 3.6)
  for panel, of_setting in panels:
    arms = comparison.ranked_arms(of_setting, "robust_accuracy")
    for which, (field, label) in enumerate(FIELDS.items()):
      union = field == "robust_accuracy"
      for row, arm in enumerate(arms):
        values = of_setting[of_setting["arm"] == arm][field]
        height = np.full(len(values), -row - 0.14 * (which - 2))
        color, marker = f"C{which}", "D" if union else "o"
        panel.plot(
          values,
          height,
          marker,
          color=color,
          markersize=5 if union else 3.5,
          alpha=0.8,
          label=None if row else label,
        )
    panel.set_yticks(-np.arange(len(arms)), arms)
    panel.grid(axis="x", alpha=0.3)
    panel.set_xlabel("test accuracy")
  handles, labels = panels[0][0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=len(FIELDS))
  return figure


def tables(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
  """(setting, Markdown table) with means and standard deviations over the seeds.

  The last column is the difference from the best of MAX, AVG and MSD, paired by seed,
  with its standard error.
  """
  columns: comparison.Columns = {
    "steps": lambda rows: f"{rows['steps'].mean():.0f}",
    "passes an image": lambda rows: f"{rows['passes'].mean():.3g}",
    **comparison.columns_of(FIELDS),
  }
  for setting, rows in runs.groupby("setting", sort=False):
    baselines = ("MAX", "AVG", "MSD")
    yield (
      str(setting),
      comparison.table(rows, "robust_accuracy", "union", baselines, columns),
    )
