"""Memory and time of a step by the number of restarts and gradients in memory.

python benchmarks/memory.py --width=16 --batch_size=64 --steps=2

For the program's DDi training step and several K, the script measures the time of a
step and XLA's plan of arguments, results and temporaries.  In a step, n restarts are
attacked and differentiated at once.  All K gradients are kept, or only m of them, which
are then recomputed when needed.  The script prints a Markdown table.
"""

from absl import app, flags
import jax
import workload

_COUNTS = flags.DEFINE_list("counts", ["2", "4", "8"], "K.")
_RESTARTS = flags.DEFINE_list("restarts_at_a_time", ["1", "2", "4"], "Values of n.")
_GRADIENTS = flags.DEFINE_list("gradients_at_a_time", ["0", "1", "2"], "m; 0 is all.")
_MEBI = 2**20


def _compiled(count, restarts, gradients):
  changes = {
    "num_restarts": count,
    "restarts_at_a_time": restarts,
    "gradients_at_a_time": gradients or None,
  }
  return workload.CompiledStep(workload.create("danskin", changes))


def main(_):
  """Time and print."""
  print(workload.describe() + "\n", flush=True)
  counts, restarts, gradients = (
    [int(text) for text in flag.value] for flag in (_COUNTS, _RESTARTS, _GRADIENTS)
  )
  rows = [(k, n, 0) for k in counts for n in restarts if n <= k]
  rows += [(k, min(2, k), m) for k in counts for m in gradients if 0 < m < k]
  steps = {row: _compiled(*row) for row in rows}
  seconds = workload.median_seconds(steps)
  params = workload.create("pgd").state.params
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / _MEBI
  print(f"One gradient: {size:.1f} MiB.\n")
  print("| K | restarts at a time | gradients kept | memory (MiB) | step (s) |")
  print("|---|---|---|---|---|")
  for (count, together, kept), step in steps.items():
    print(
      f"| {count} | {together} | {kept or 'all'} | {step.bytes / _MEBI:.0f} | "
      f"{seconds[count, together, kept]:.2f} |"
    )


if __name__ == "__main__":
  app.run(main)
