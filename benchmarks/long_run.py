"""Check that memory, open files and the log do not grow in a long run.

  python benchmarks/long_run.py

The script runs the training program for 20,000 small steps on digits, with an
evaluation and a checkpoint every 500 steps.  It ends with an error if, in the second
half of the run, memory grew by more than noise, open files grew, or the log grew by
more than its lines.
"""

import argparse
import itertools
import os
from pathlib import Path
import sys
import tempfile
import threading

from machine import describe_machine
import numpy as np

from ddi_jax import training
from ddi_jax.training.storage import logs

MEMORY_NOISE = 8.0  # MiB by which memory may grow in the second half.
EVALUATE_EVERY = 500  # Steps between evaluations.
_INTERVAL = 0.25  # Seconds between samples.


def small_config(steps: int):
  """A config with two restarts, one attack step, batch 8 and some 300 weights."""
  config = training.default_config()
  config.update_from_flattened_dict(
    {
      "num_restarts": 2,
      "batch_size": 8,
      "attack.steps": 1,
      "data.limit": 80,
      "data.validation_size": 16,
      "num_epochs": steps / 10,
      "evaluation.every_epochs": EVALUATE_EVERY / 10,
      "evaluation.steps": 1,
      "evaluation.batch_size": 16,
      "evaluation.test_limit": 16,
      "model.width": 1,
      "model.hidden": 4,
      "model.strides": (2, 2),
    }
  )
  return config


class Usage(threading.Thread):
  """Sample the resources of this process while the `with` block runs.

  Attributes:
    samples: (resident MiB, open files, KiB of metrics.jsonl), in order of time.
  """

  def __init__(self, workdir: Path):
    super().__init__(daemon=True)
    self.samples: list[tuple[float, int, float]] = []
    self._log = workdir / logs.METRICS_FILE
    self._ended = threading.Event()

  def run(self) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while not self._ended.wait(_INTERVAL):
      resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
      size = self._log.stat().st_size if self._log.exists() else 0
      self.samples.append(
        (resident / 2**20, len(os.listdir("/proc/self/fd")), size / 2**10)
      )

  def __enter__(self) -> "Usage":
    self.start()
    return self

  def __exit__(self, *exception) -> None:
    self._ended.set()
    self.join()


def parts(samples: np.ndarray, number: int) -> list[np.ndarray]:
  """The medians `[3]` of the samples in equal parts of the steps, without start-up."""
  size = samples[:, 2]
  edges = np.linspace(0, size[-1], number + 1)
  return [
    np.median(samples[(size > low) & (size <= high)], axis=0)
    for low, high in itertools.pairwise(edges)
  ]


def find_growth(workdir: Path, samples: np.ndarray, steps: int) -> list[str]:
  """Find what grew during a run.

  Args:
    workdir: folder of the finished run.
    samples: `[N, 3]`, see `Usage`.
    steps: number of steps of the run.

  Returns:
    A line for each fault; empty if there is none.
  """
  faults = []
  # The first quarter warms up the allocators, and compiles the evaluations.
  _, second, _, last = parts(samples, 4)
  if last[0] - second[0] > MEMORY_NOISE:
    faults.append(f"memory grew from {second[0]:.1f} to {last[0]:.1f} MiB")
  if last[1] > second[1]:
    faults.append(f"open files grew from {second[1]:.0f} to {last[1]:.0f}")
  records = list(logs.read_metrics(workdir))
  evaluations = steps // EVALUATE_EVERY + 1
  expected = steps + evaluations + 1  # The last one is the test.
  if len(records) != expected:
    faults.append(f"{len(records)} lines are logged, not {expected}")
  events = sum(path.stat().st_size for path in (workdir / "tensorboard").iterdir())
  log = (workdir / logs.METRICS_FILE).stat().st_size
  if events > 2 * log:
    faults.append(f"TensorBoard's files have {events} bytes, for {log} of log")
  folders = list((workdir / "checkpoints").iterdir())
  if len(folders) > 3:
    faults.append(f"{len(folders)} checkpoints are kept")
  return faults


def run(steps: int, workdir: Path) -> tuple[np.ndarray, list[str]]:
  """Run the program; return (samples, faults)."""
  with Usage(workdir) as usage:
    training.train(small_config(steps), workdir)
  samples = np.array(usage.samples)
  return samples, find_growth(workdir, samples, steps)


def main() -> None:
  """Run and report."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=20_000)
  steps = parser.parse_args().steps
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder) / "run"
    samples, faults = run(steps, workdir)
    log = (workdir / logs.METRICS_FILE).stat().st_size
  print(describe_machine("jax", "orbax-checkpoint", "grain"))
  print("| part of the run | resident (MiB) | open files | metrics.jsonl (KiB) |")
  print("|---|---|---|---|")
  for number, (memory, files, size) in enumerate(parts(samples, 10), start=1):
    print(f"| {number}/10 | {memory:.1f} | {files:.0f} | {size:.0f} |")
  print(f"{log / steps:.0f} bytes of metrics.jsonl a step")
  if faults:
    sys.exit("; ".join(faults))


if __name__ == "__main__":
  main()
