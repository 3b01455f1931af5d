"""Helpers for tables that compare methods: arms, seeds and paired differences."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

Columns = Mapping[str, Callable[[pd.DataFrame], str]]  # Title -> (arm's rows -> cell).


def compared_runs(table: pd.DataFrame) -> pd.DataFrame:
  """The runs without the sweep of learning rates, which has the least seed."""
  return table[table["seed"] > table["seed"].min()]


def ranked_arms(runs: pd.DataFrame, field: str) -> list[str]:
  """The arms in descending order of a field's mean."""
  means = runs.groupby("arm")[field].mean()
  return list(means.sort_values(ascending=False, kind="stable").index)


def mean_and_deviation(values: pd.Series) -> str:
  """The mean and the standard deviation over the seeds, as text.

  With one seed there is no deviation.
  """
  return _with_error(f"{values.mean():.3f}", values.std(ddof=1))


def columns_of(fields: Mapping[str, str]) -> Columns:
  """Columns with the means and standard deviations of fields, by their titles."""

  def column(field):
    return lambda rows: mean_and_deviation(rows[field])

  return {title: column(field) for field, title in fields.items()}


def table(
  runs: pd.DataFrame,
  field: str,
  title: str,
  baselines: Sequence[str],
  columns: Columns,
) -> str:
  """A Markdown table with a line per arm, ranked by a field.

  The last column is the field's difference from the best of the baselines, paired by
  seed, with its standard error.
  """
  arms = ranked_arms(runs, field)
  best = next(arm for arm in arms if arm in baselines)
  reference = runs[runs["arm"] == best].set_index("seed")[field]
  lines = [
    f"| method | learning rate | {' | '.join(columns)} | {title} - {best} |",
    "|---" * (3 + len(columns)) + "|",
  ]
  for arm in arms:
    of_arm = runs[runs["arm"] == arm]
    cells = [arm, f"{of_arm['learning_rate'].iloc[0]:g}"]
    cells += [cell(of_arm) for cell in columns.values()]
    gaps = of_arm.set_index("seed")[field] - reference
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    cells.append("" if arm == best else _with_error(f"{gaps.mean():+.3f}", error))
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def panels(
  runs: pd.DataFrame, height: float
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
  """A figure with a panel per setting, and the list of (panel, setting's runs)."""
  settings = list(dict.fromkeys(runs["setting"]))
  figure = Figure(figsize=(5.2 * len(settings), height))
  FigureCanvasAgg(figure)
  found = figure.subplots(1, len(settings), squeeze=False)[0]
  for panel, setting in zip(found, settings, strict=True):
    panel.set_title(setting)
  by_setting = [runs[runs["setting"] == setting] for setting in settings]
  return figure, list(zip(found, by_setting, strict=True))


def _with_error(value: str, error: float) -> str:
  return value if np.isnan(error) else f"{value} ± {error:.3f}"
