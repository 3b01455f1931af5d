"""Make the documents' figures and tables from the experiments' CSV files.

python -m experiments.figures --data=docs/data --images=docs/images

For directions, bands are 95 % t-intervals of the mean over batches.  For early
training, bands are the range over seeds, and differences are paired by seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import app, flags
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
import pandas as pd
from scipy import stats

from experiments import union_results, worst_class_results
from experiments.comparison import compared_runs, mean_and_deviation

_DATA = flags.DEFINE_string("data", "docs/data", "Folder of the CSV files.")
_IMAGES = flags.DEFINE_string("images", "docs/images", "Folder for the figures.")
_NAMES = flags.DEFINE_list(
  "names",
  ["directions", "early_training", "union", "union_mlp", "worst_class"],
  "Names of the experiments, the `name` in their configs.",
)

COLORS = {
  "pgd": "#D55E00",
  "average": "#0072B2",
  "worst_restart": "#CC79A7",
  "danskin": "#009E73",
  "danskin, active set": "#56B4E9",
  "danskin, bundle": "#E69F00",
}
MARKERS = dict(zip(COLORS, "^svDoP", strict=True))
TESTS = {"batch": "the batch itself", "held_out": "a held-out batch"}
_UNIT = ", unit norm"
_ONE_GRADIENT = ("pgd", "worst_restart")  # These have no pairs of gradients.


def t_interval(samples: pd.Series) -> pd.Series:
  """Mean, and half the width of its 95 % t-interval (NaN for one sample)."""
  half = stats.t.ppf(0.975, len(samples) - 1) * stats.sem(samples)
  return pd.Series({"mean": samples.mean(), "half": half})


def minus_pgd(table: pd.DataFrame, field: str, paired_by: Sequence[str]) -> pd.Series:
  """The difference of each row's field from PGD's, for the same batch or seed.

  Args:
    table: a table with a column `direction`, in which "pgd" occurs.
    field: the column to compare.
    paired_by: columns that identify the rows to compare, for example by batch or seed.
  """
  of_pgd = table[table["direction"] == "pgd"].set_index(list(paired_by))[field]
  keys = pd.MultiIndex.from_frame(table[list(paired_by)])
  return table[field] - of_pgd.reindex(keys).to_numpy()


def intervals(changes: pd.DataFrame) -> pd.DataFrame:
  """Intervals over batches of the robust loss's change, and its gap to PGD's."""
  place = ["setting", "epoch", "length", "test"]
  changes = changes.assign(
    gap=minus_pgd(changes, "change", [*place, "batch", "step"]),
  )
  groups = changes.groupby([*place, "direction"], sort=False)
  return pd.concat(
    {name: groups[name].apply(t_interval).unstack() for name in ("change", "gap")},
    axis=1,
  )


def draw_directions(changes: pd.DataFrame, test: str, title: str) -> Figure:
  """Plot differences from PGD, with a column per network and a row per step length."""
  found = intervals(changes)
  settings = list(dict.fromkeys(changes["setting"]))
  lengths = sorted(set(changes["length"]))
  epochs = sorted(set(changes["epoch"]))
  figure = Figure(figsize=(3.1 * len(settings), 2.1 * len(lengths) + 0.8))
  FigureCanvasAgg(figure)
  panels = figure.subplots(
    len(lengths), len(settings), squeeze=False, sharex=True, sharey="row"
  )
  others = [name for name in COLORS if name != "pgd"]
  for row, length in enumerate(lengths):
    for column, setting in enumerate(settings):
      panel = panels[row, column]
      panel.axhline(0, color="0.6", linewidth=0.8, zorder=0)
      panel.set_yscale("symlog", linthresh=1e-3)
      for which, direction in enumerate(others):
        of_phase = [
          found.loc[(setting, epoch, length, test, direction), "gap"]
          for epoch in epochs
        ]
        panel.errorbar(
          np.arange(len(epochs)) + 0.13 * (which - (len(others) - 1) / 2),
          [interval["mean"] for interval in of_phase],
          [interval["half"] for interval in of_phase],
          fmt=MARKERS[direction],
          color=COLORS[direction],
          markersize=3.5,
          capsize=2,
          linewidth=1,
          label=direction,
        )
      if row == 0:
        panel.set_title(setting)
      if column == 0:
        panel.set_ylabel(f"step {length:g}")
      panel.set_xticks(range(len(epochs)), [f"{epoch:.2g}" for epoch in epochs])
  for panel in panels[-1]:
    panel.set_xlabel("epochs of training before")
  figure.suptitle(title, fontsize=10)
  handles, labels = panels[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=len(others))
  return figure


def draw_relations(relations: pd.DataFrame) -> Figure:
  """Plot how nearly the restarts' gradients agree, and DDi with PGD."""
  figure = Figure(figsize=(10.5, 3.4))
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2, sharex=True)
  panels = {
    "cosine": (left, "mean cosine of pairs"),
    "cosine_to_pgd": (right, "cosine of DDi with PGD"),
  }
  danskin = relations[relations["direction"] == "danskin"]
  settings = list(dict.fromkeys(danskin["setting"]))
  epochs = sorted(set(danskin["epoch"]))
  for field, (panel, label) in panels.items():
    for which, setting in enumerate(settings):
      by_epoch = danskin[danskin["setting"] == setting].groupby("epoch")[field]
      low, mean, high = by_epoch.min(), by_epoch.mean(), by_epoch.max()
      panel.errorbar(
        np.arange(len(epochs)) + 0.08 * (which - (len(settings) - 1) / 2),
        1 - mean,
        [np.maximum(high - mean, 0), mean - low],
        fmt="os^vDPX*"[which % 8],
        markersize=3.5,
        capsize=2,
        linewidth=1,
        label=setting,
      )
    panel.set_yscale("log")
    panel.set_ylabel(f"1 - {label}")
    panel.set_xlabel("epochs of training before")
    panel.set_xticks(range(len(epochs)), [f"{epoch:.2g}" for epoch in epochs])
  figure.suptitle("mean and range over batches; 0 (not shown): the same", fontsize=10)
  handles, labels = left.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper")
  return figure


def draw_early_training(curves: pd.DataFrame, setting: str) -> Figure:
  """Plot robust accuracy by epoch and by gradient evaluations.

  Lines are means over seeds, and bands are their range.
  """
  units = sorted(set(curves["arm"].str.endswith(_UNIT)))
  figure = Figure(figsize=(10.5, 3.2 * len(units)))
  FigureCanvasAgg(figure)
  panels = figure.subplots(len(units), 2, sharey=True, squeeze=False)
  common = curves[curves["arm"] != "pgd"].groupby("arm")["epoch"].max().min()
  for row, unit in enumerate(units):
    of_row = curves[curves["arm"].str.endswith(_UNIT) == unit]
    for column, axis in enumerate(("epoch", "gradient_evaluations")):
      panel = panels[row, column]
      shown = of_row[of_row["epoch"] <= common + 1e-6] if axis == "epoch" else of_row
      for arm in dict.fromkeys(shown["arm"]):
        by_place = shown[shown["arm"] == arm].groupby(axis)["robust_accuracy"]
        color = COLORS[arm.removesuffix(_UNIT)]
        low, mean, high = by_place.min(), by_place.mean(), by_place.max()
        scale = 1 if axis == "epoch" else 1000
        panel.fill_between(
          mean.index / scale, low, high, color=color, alpha=0.15, linewidth=0
        )
        panel.plot(
          mean.index / scale,
          mean,
          color=color,
          marker=MARKERS[arm.removesuffix(_UNIT)],
          markersize=3.5,
          linewidth=1.2,
          label=arm,
        )
      panel.set_xlabel(
        "epoch" if axis == "epoch" else "gradient evaluations (thousands)"
      )
      if column == 0:
        panel.set_ylabel("validation robust accuracy")
        panel.legend(loc="upper left")
  figure.suptitle(
    f"{setting}: mean and range of the seeds; above the direction as it is, below "
    "scaled to unit norm",
    fontsize=10,
  )
  return figure


def early_training_tables(
  runs: pd.DataFrame, curves: pd.DataFrame
) -> Iterator[tuple[str, str]]:
  """(setting, Markdown table) of seeds that were not used to choose learning rates."""
  for setting, compared in comparable_settings(curves):
    common = compared.groupby("arm")["epoch"].max().min()
    tested = runs.set_index("run").loc[list(dict.fromkeys(compared["run"]))]
    unit = tested["unit_norm"].map({True: _UNIT, False: ""})
    tested = tested.assign(direction=tested["method"] + unit)
    lines = [
      "| method | learning rate | by epoch | minus pgd | equal compute | minus pgd | "
      "test robust | confidence | cosine |",
      "|---|---|---|---|---|---|---|---|---|",
    ]
    at_epoch = _last(compared[compared["epoch"] <= common + 1e-6])
    at_end = _last(compared)
    for arm in dict.fromkeys(compared["arm"]):
      base = "pgd" + (_UNIT if arm.endswith(_UNIT) else "")
      cells = [arm, f"{compared[compared['arm'] == arm]['learning_rate'].iloc[0]:g}"]
      for table in (at_epoch, at_end):
        cells.append(mean_and_deviation(table[arm]))
        gaps = (table[arm] - table[base]).dropna()
        cells.append("" if arm == base else _interval(gaps))
      of_arm = tested[tested["direction"] == arm]
      cells.append(mean_and_deviation(of_arm["robust_accuracy"]))
      cells.append(mean_and_deviation(of_arm["mean_confidence"]))
      cosines = compared[compared["arm"] == arm]["cosine"].dropna()
      several = arm.removesuffix(_UNIT) not in _ONE_GRADIENT
      cells.append(f"{cosines.min():.4f} to {cosines.max():.4f}" if several else "")
      lines.append("| " + " | ".join(cells) + " |")
    yield setting, "\n".join(lines)


def comparable_settings(curves: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
  """The settings in which every method has at least two finished seeds to compare."""
  for setting, of_setting in curves.groupby("setting", sort=False):
    compared = compared_runs(of_setting)
    seeds = compared.groupby("arm")["seed"].nunique()
    if set(seeds.index) == set(of_setting["arm"]) and seeds.min() > 1:
      yield setting, compared


def _last(curves: pd.DataFrame) -> pd.DataFrame:
  """Robust accuracies at the last evaluation, `[seeds, arms]`."""
  rows = curves.loc[curves.groupby("run")["step"].idxmax()]
  return rows.pivot(index="seed", columns="arm", values="robust_accuracy")


def _interval(samples: pd.Series) -> str:
  found = t_interval(samples)
  return f"{found['mean']:+.3f} ± {found['half']:.3f}"


def directions_summary(changes: pd.DataFrame) -> str:
  """A Markdown table: in how many cases a direction differs from PGD, and how much.

  A case is a network, phase and step length.  A direction differs if the 95 % interval
  of the difference excludes 0.
  """
  found = intervals(changes)
  gap, own = found["gap"], found["change", "mean"]
  pgd = own.xs("pgd", level="direction").abs()
  keys = found.index.droplevel("direction")
  relative = gap["mean"] / pgd.reindex(keys).to_numpy()
  cases = pd.DataFrame(
    {
      "better": gap["mean"] + gap["half"] < 0,
      "worse": gap["mean"] - gap["half"] > 0,
      "relative": relative,
    }
  )
  lines = [
    "| direction | measured on | cases | better than PGD | worse | median difference |",
    "|---|---|---|---|---|---|",
  ]
  groups = cases.groupby(["direction", "test"], sort=False)
  for direction in list(COLORS)[1:]:
    for test, where in TESTS.items():
      rows = groups.get_group((direction, test))
      lines.append(
        f"| {direction} | {where} | {len(rows)} | {rows['better'].sum()} | "
        f"{rows['worse'].sum()} | {100 * rows['relative'].median():+.2f} % of PGD's |"
      )
  return "\n".join(lines)


def directions_table(changes: pd.DataFrame, relations: pd.DataFrame) -> str:
  """A Markdown table of the directions' cosines and effects, by network and phase.

  The effects are changes on held-out batches, at the middle one of the step lengths.
  """
  found = intervals(changes)
  lengths = sorted(set(changes["length"]))
  length = lengths[len(lengths) // 2]
  lines = [
    f"| network | epochs | cosine of pairs | least | DDi with PGD | PGD's change, step "
    f"{length:g} | average - PGD | DDi - PGD |",
    "|---|---|---|---|---|---|---|---|",
  ]
  danskin = relations[relations["direction"] == "danskin"]
  for (setting, epoch), rows in danskin.groupby(["setting", "epoch"], sort=False):
    cells = [setting, f"{epoch:.2g}", f"{rows['cosine'].mean():.5f}"]
    cells.append(f"{rows['min_cosine'].min():.5f}")
    cells.append(f"{rows['cosine_to_pgd'].mean():.5f}")
    of_phase = found.loc[(setting, epoch, length, "held_out")]
    for direction, field in (("pgd", "change"), ("average", "gap"), ("danskin", "gap")):
      interval = of_phase.loc[direction, field]
      cells.append(f"{interval['mean']:+.4f} ± {interval['half']:.4f}")
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _report_directions(data: Path, images: Path, name: str) -> None:
  changes = pd.read_csv(data / f"{name}-changes.csv")
  relations = pd.read_csv(data / f"{name}-relations.csv")
  for test, where in TESTS.items():
    families = changes["setting"].str.split("_").str[0]
    for family in dict.fromkeys(families):
      title = (
        f"change of the robust loss on {where}, minus PGD's (below 0: better); 95 % "
        "intervals over batches"
      )
      _save(
        draw_directions(changes[families == family], test, title),
        images / f"{name}-{family}-{test}.png",
      )
  _save(draw_relations(relations), images / f"{name}-relations.png")
  print(f"\n{directions_summary(changes)}\n\n{directions_table(changes, relations)}")


def _report_early_training(data: Path, images: Path, name: str) -> None:
  runs = pd.read_csv(data / f"{name}-runs.csv")
  curves = pd.read_csv(data / f"{name}-curves.csv")
  tables = dict(early_training_tables(runs, curves))
  for setting, compared in comparable_settings(curves):
    _save(draw_early_training(compared, setting), images / f"{name}-{setting}.png")
    print(f"\n### {setting}\n\n{tables[setting]}\n")
  for setting in set(curves["setting"]) - set(tables):
    print(f"{setting}: not finished.")


def _report_runs(results: ModuleType, data: Path, images: Path, name: str) -> None:
  """Draw and print what `union_results` or `worst_class_results` makes of the runs."""
  runs = compared_runs(pd.read_csv(data / f"{name}-runs.csv"))
  _save(results.draw(runs), images / f"{name}.png")
  for setting, table in results.tables(runs):
    print(f"\n### {setting}\n\n{table}\n")


def _save(figure: Figure, path: Path) -> None:
  figure.savefig(path, dpi=110)
  print(path)


def main(argv: list[str]) -> None:
  """Draw the figures and print the tables of the experiments in `--names`."""
  del argv
  data, images = Path(_DATA.value), Path(_IMAGES.value)
  images.mkdir(parents=True, exist_ok=True)
  style = matplotlib.rc_context(
    {
      "axes.spines.top": False,
      "axes.spines.right": False,
      "figure.constrained_layout.use": True,
      "font.size": 9,
      "legend.frameon": False,
    }
  )
  with style:
    for name in _NAMES.value:
      if name.startswith("directions"):
        _report_directions(data, images, name)
      elif name.startswith("union"):
        _report_runs(union_results, data, images, name)
      elif name.startswith("worst_class"):
        _report_runs(worst_class_results, data, images, name)
      else:
        _report_early_training(data, images, name)


if __name__ == "__main__":
  app.run(main)
