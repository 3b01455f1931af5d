"""Memory and time of gradients that are kept, against gradients recomputed.

python benchmarks/memory.py --width=16 --batch_size=64 --steps=2

Of the whole compiled DDi training step, for several K: XLA's plan of arguments, results
and temporaries, and the time of a step, with all K gradients kept and with n at a time.
Prints a Markdown table.
"""

from absl import app, flags
import jax
import workload

_COUNTS = flags.DEFINE_list("counts", ["2", "4", "8"], "K.")
_AT_A_TIME = flags.DEFINE_list("at_a_time", ["0", "1", "2"], "n; 0 keeps all.")
_MEBI = 2**20


def _compiled(count, at_a_time):
  changes = {"num_restarts": count, "gradients_at_a_time": at_a_time or None}
  return workload.CompiledStep(workload.create("danskin", {}, changes))


def main(_):
  """Times and prints."""
  print(workload.describe() + "\n", flush=True)
  counts = [int(text) for text in _COUNTS.value]
  numbers = [int(text) for text in _AT_A_TIME.value]
  steps = {(k, n): _compiled(k, n) for k in counts for n in numbers if n < k}
  seconds = workload.median_seconds(steps)
  params = workload.create("pgd", {}).state.params
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / _MEBI
  print(f"One gradient: {size:.1f} MiB.\n")
  print("| K | gradients at a time | memory (MiB) | step (s) |")
  print("|---|---|---|---|")
  for (count, number), step in steps.items():
    print(
      f"| {count} | {number or 'all kept'} | {step.bytes / _MEBI:.0f} | "
      f"{seconds[count, number]:.2f} |"
    )


if __name__ == "__main__":
  app.run(main)
