"""The bytes that a compiled training step sends between devices.

python benchmarks/collectives.py --mesh=2x4 --num_restarts=4 --width=16

The script compiles the program's step for restart x data virtual CPU devices, and
compares the bytes of its collective operations with the formulas in docs/scaling.md.
Nothing is run.  The output is a Markdown table, which includes XLA's plan of
temporaries.

With --topology=v5e:2x4 the step is compiled for TPUs of that topology.  This needs no
TPU, only `pip install libtpu`, and takes minutes.  The table then also has the
compiler's estimate of cycles; tpu_estimate.py gives more details.
"""

import math
from typing import Any

from absl import app, flags
from compiled_program import COLLECTIVES, estimated_cycles, sent_by_kind
import described_tpus
import jax
from progress import progress
import workload

_MESH = flags.DEFINE_list("mesh", ["2x4"], "Meshes, restart x data, comma-separated.")
_FSDP = flags.DEFINE_bool("fsdp", False, "Split parameters over all devices.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology to compile for.")


def expected_bytes(
  num_rows: int,
  num_parameters: int,
  restart: int,
  data: int,
  *,
  summed_by: str = "all-reduce",
) -> dict[str, float]:
  """The bytes that a device sends for large arrays, as derived in docs/scaling.md.

  Args:
    num_rows: K, the number of gradients.
    num_parameters: d, the number of parameters, all in tensors that are split.
    restart: R, the number of devices over which the restarts are split.
    data: D, the number of devices over which the batch is split.
    summed_by: how the compiler sums over the batch, "all-reduce" or "reduce-scatter".
  """
  itemsize = 4
  gradients = num_rows / restart * num_parameters * itemsize
  devices = restart * data
  twice = 2 if summed_by == "all-reduce" else 1
  return {
    summed_by: twice * gradients * (data - 1) / data,
    "all-to-all": gradients / data * (restart - 1) / restart,
    "all-gather": num_parameters * itemsize * (devices - 1) / devices,
  }


def _lower_for_cpus(changes: dict[str, Any]) -> tuple[Any, Any]:
  """Lower the step for virtual CPU devices; also return its state."""
  work = workload.create("danskin", changes)
  return work.lower(), work.state


def _lower_for_tpus(changes: dict[str, Any]) -> tuple[Any, Any]:
  """Lower the step for described TPUs, which need not exist; also return its state."""
  config = workload.create_config("danskin", changes)
  return described_tpus.lower(config, described_tpus.describe(_TOPOLOGY.value))


def main(argv: list[str]) -> None:
  """Print a line for every mesh."""
  del argv
  shapes = [tuple(int(size) for size in text.split("x")) for text in _MESH.value]
  jax.config.update("jax_num_cpu_devices", max(math.prod(shape) for shape in shapes))
  jax.config.update("jax_platforms", "cpu")
  print(workload.describe() + "\n", flush=True)
  lower, summed_by, extra = _lower_for_cpus, "all-reduce", []
  if _TOPOLOGY.value:
    lower, summed_by, extra = _lower_for_tpus, "reduce-scatter", ["10^6 cycles"]
  titles = ["restart x data", *COLLECTIVES, "temporaries (MiB)", *extra]
  print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
  for restart, data in progress(shapes):
    changes = {
      "mesh.restart": restart,
      "mesh.data": data,
      "mesh.fsdp": _FSDP.value,
      "evaluation.batch_size": restart * data,
    }
    lowered, state = lower(changes)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    compiled = lowered.compile()
    program = compiled.as_text()
    sent = sent_by_kind(program)
    expected = expected_bytes(
      flags.FLAGS.num_restarts, size, restart, data, summed_by=summed_by
    )
    cells = [f"{restart} x {data}"]
    for kind in COLLECTIVES:
      formula = f" ({expected[kind]:,.0f})" if kind in expected else ""
      cells.append(f"{sent.get(kind, 0):,.0f}{formula}")
    cells.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f}")
    if extra:
      cells.append(f"{estimated_cycles(program) / 1e6:.1f}")
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
