"""Compare `ddi_jax.minimize_max` with other minimisers of a maximum.

pip install -e '.[peers,experiments]'
python benchmarks/minimax.py --seconds=1

All computations are in float64, except for one row.  All solvers start at the same
point of published problems (benchmarks/minimax_problems.py) and of tasks
(benchmarks/minimax_tasks.py).  An evaluation computes all losses at one point.
Gradients are not counted, for any solver.  Other solvers get 20 times our evaluations
(3 times for tasks), and at least 500.  Except for the gradient methods, their time is
limited to twice our time, and at least --seconds.  For the largest task, our solver
gets 100 steps.

The error is (value - best) / |best|, or the value itself if best is 0.  Here best is
the least value of all solvers in float64, or the published optimum if that is less.
"Equal" is the error after as many evaluations as our solver took in all.  Seconds are
without compilation.  For our solver they are the median of three runs, for the others
one run (with the best learning rate, if the solver has one).
"""

from pathlib import Path
import re
import statistics
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
from machine import describe_machine
import matplotlib as mpl
import matplotlib.pyplot as plt
from minimax_problems import PROBLEMS
from minimax_tasks import Task, tasks
import numpy as np
import pandas as pd
from peers.minimizers import DENSE, SOLVERS, Problem, Run
from progress import progress

import ddi_jax

_OUTPUT = flags.DEFINE_string("output", None, "Folder for minimax.csv.")
_ONLY = flags.DEFINE_string("only", "", "Regular expression for problems' names.")
_SOLVERS = flags.DEFINE_string("solvers", "", "Regular expression for others' names.")
_SECONDS = flags.DEFINE_float("seconds", 5, "Least time limit per solver and problem.")
_PICTURE = flags.DEFINE_string("picture", None, "A PNG of the last problem's runs.")

OURS = "minimize_max"
SINGLE = "minimize_max, float32"
GOAL = 1e-7  # The relative error to reach.
# Greatest number of parameters for dense methods.  With more, an iteration takes
# minutes.
DENSE_LIMIT = 2000


def _max_steps(task: Task) -> int:
  return 100 if len(task.start) > 50_000 else 500


def _minimize(task: Task, dtype: type) -> tuple[Run, ddi_jax.MinimaxSolution, float]:
  """Run our solver; return the run, its solution, and the seconds of compilation."""
  start = jnp.asarray(task.start, dtype)

  def losses_fn(x: jax.Array) -> jax.Array:
    return task.losses_fn(x).astype(dtype)

  def minimize(x: jax.Array) -> ddi_jax.MinimaxSolution:
    return ddi_jax.minimize_max(losses_fn, x, max_steps=_max_steps(task))

  began = time.perf_counter()
  compiled = jax.jit(minimize).lower(start).compile()
  compilation = time.perf_counter() - began
  seconds = []
  for _ in range(3):
    began = time.perf_counter()
    solution = jax.block_until_ready(compiled(start))
    seconds.append(time.perf_counter() - began)
  told: list[ddi_jax.MinimaxProgress] = []
  ddi_jax.minimize_max(
    losses_fn, start, max_steps=_max_steps(task), callback=told.append
  )
  jax.effects_barrier()
  values = np.full(int(solution.evaluations), np.inf)
  values[0] = float(losses_fn(start).max())
  for step in told:
    values[int(step.evaluations) - 1] = float(step.value)
  run = Run(
    np.minimum.accumulate(values), statistics.median(seconds), int(solution.steps)
  )
  return run, solution, compilation


def _problems() -> list[tuple[Task, float | None]]:
  """All problems, each with its published optimum if there is one."""
  published = [
    (Task(p.name, np.array(p.start), p.losses_fn), p.optimum) for p in PROBLEMS
  ]
  return [*published, *((task, None) for task in tasks())]


def _rows(task: Task, optimum: float | None) -> list[dict[str, Any]]:
  ours, solution, compilation = _minimize(task, jnp.float64)
  single, single_solution, _ = _minimize(task, jnp.float32)
  runs = {OURS: ours, SINGLE: single}
  problem = Problem(
    task.start,
    task.losses_fn,
    evaluations=max(500, (3 if optimum is None else 20) * len(ours.values)),
    seconds=max(_SECONDS.value, 2 * ours.seconds),
  )
  for name, solver in SOLVERS.items():
    if not re.search(_SOLVERS.value, name):
      continue
    if name not in DENSE or len(task.start) <= DENSE_LIMIT:
      runs[name] = solver(problem)
  least = min(run.values[-1] for name, run in runs.items() if name != SINGLE)
  reference = least if optimum is None else min(least, optimum)
  scale = abs(reference) if optimum != 0 else 1.0
  if _PICTURE.value:
    _draw(runs, reference, scale)
  return [
    {
      "problem": task.name,
      "n": len(task.start),
      "K": len(solution.losses),
      "solver": name,
      "iterations": run.iterations,
      "evaluations": len(run.values),
      "seconds": run.seconds,
      "compilation": compilation if name == OURS else "",
      "status": {
        OURS: ddi_jax.MinimaxStatus(int(solution.status)).name,
        SINGLE: ddi_jax.MinimaxStatus(int(single_solution.status)).name,
      }.get(name, ""),
      "gap": {OURS: float(solution.gap), SINGLE: float(single_solution.gap)}.get(
        name, ""
      ),
      "value": run.values[-1],
      "error": (run.values[-1] - reference) / scale,
      "equal_error": (run.values[: len(ours.values)][-1] - reference) / scale,
      "evaluations_to_goal": _first(run.values, reference + GOAL * scale),
    }
    for name, run in runs.items()
  ]


def _draw(runs: dict[str, Run], reference: float, scale: float) -> None:
  """Plot the error after every evaluation, with names at the ends of the lines."""
  mpl.use("Agg")
  figure, axis = plt.subplots(figsize=(9, 4.5), layout="tight")
  ends = {}
  for name, run in runs.items():
    if name == SINGLE:
      continue
    errors = np.maximum((run.values - reference) / scale, 1e-10)
    is_ours = name == OURS
    style = {"color": "black", "linewidth": 2.5} if is_ours else {"linewidth": 1.2}
    (line,) = axis.loglog(np.arange(len(errors)) + 1, errors, **style)
    ends[name] = (len(errors), np.log10(errors[-1]), line.get_color())
  # Place the names below one another, from the greatest error down.
  height = np.inf
  for name, (last, error, color) in sorted(ends.items(), key=lambda e: -e[1][1]):
    height = min(error, height - 0.55)
    axis.annotate(
      name,
      (last, 10**error),
      (1.02, 10**height),
      textcoords=axis.get_yaxis_transform(),
      color=color,
      va="center",
      arrowprops={
        "arrowstyle": "-",
        "color": color,
        "alpha": 0.4,
        "linewidth": 0.7,
        "relpos": (0, 0.5),
      },
    )
  axis.set_xlabel("evaluations of all losses")
  axis.set_ylabel("greatest loss above the least found, relative")
  axis.grid(alpha=0.3)
  figure.savefig(_PICTURE.value, dpi=120)
  plt.close(figure)


def _first(values: np.ndarray, goal: float) -> int | str:
  """The number of the first evaluation that reaches the goal."""
  reached = np.flatnonzero(values <= goal)
  return int(reached[0]) + 1 if len(reached) else ""


def _print(rows: list[dict[str, Any]]) -> None:
  print(
    f"\n### {rows[0]['problem']}: n = {rows[0]['n']:,}, K = {rows[0]['K']}\n\n"
    "| solver | iterations | evaluations | to 1e-7 | seconds | value | error "
    "| equal |\n"
    "|---|---|---|---|---|---|---|---|"
  )
  for row in rows:
    iterations = row["iterations"] if row["iterations"] >= 0 else ""
    print(
      f"| {row['solver']} | {iterations} | {row['evaluations']} | "
      f"{row['evaluations_to_goal']} | {row['seconds']:.3g} | {row['value']:.9g} | "
      f"{row['error']:.0e} | {row['equal_error']:.0e} |",
      flush=True,
    )


def main(_: list[str]) -> None:
  jax.config.update("jax_enable_x64", True)
  packages = ("jax", "scipy", "nlopt", "pygranso", "torch", "optax")
  print(describe_machine(*packages))
  rows: list[dict[str, Any]] = []
  chosen = [pair for pair in _problems() if re.search(_ONLY.value, pair[0].name)]
  for task, optimum in progress(chosen):
    rows += (found := _rows(task, optimum))
    _print(found)
    if _OUTPUT.value:
      pd.DataFrame(rows).to_csv(Path(_OUTPUT.value) / "minimax.csv", index=False)


if __name__ == "__main__":
  app.run(main)
