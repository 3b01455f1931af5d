"""What a training step sends between devices, read from the compiled program.

python benchmarks/collectives.py --mesh=2x4 --num_restarts=4 --width=16

Compiles the program's step for virtual CPU devices, restart x data of them, and sets
the bytes of its collective operations beside those of the formulas of docs/scaling.md.
What stands in a loop counts as often as the loop turns.  Nothing runs.  Prints a
Markdown table, with XLA's plan of temporaries.

With --topology=v5e:2x4 the step is compiled for TPUs of that form.  None has to be
there, only `pip install libtpu`; the compiler takes minutes.  The table then has the
compiler's estimate of cycles too.
"""

import collections
from collections.abc import Iterator
import math
import os
import re
from typing import Any, NamedTuple

from absl import app, flags
import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import workload

from ddi_jax import models
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.model import ImageKind, create_model
from ddi_jax.training.step import train_step
from ddi_jax.training.step.state import Hyperparameters, TrainState, create_train_state

_MESH = flags.DEFINE_list("mesh", ["2x4"], "Meshes, restart x data, comma between.")
_FSDP = flags.DEFINE_bool("fsdp", False, "Parameters split over all devices.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Of TPUs to compile for.")
_OPERATIONS = (
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "all-gather",
)
_LINE = re.compile(
  rf"= (?P<type>.*?) (?P<name>{'|'.join(_OPERATIONS)})(?P<start>-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?\w*\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_CALLED = re.compile(
  r"\b(?P<role>body|condition|calls|to_apply|branch_computations|true_computation"
  r"|false_computation|called_computations)=\{?(?P<names>%[\w.-]+(?:, %[\w.-]+)*)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
  """One operation of a compiled program.

  Attributes:
    name: "all-gather" and so on.
    result_bytes: size of its result on a device.
    group_size: number of devices that take part together.
    times: how often it runs in a step; a loop of unknown length counts as one turn.
  """

  name: str
  result_bytes: int
  group_size: int
  times: int = 1

  def sent_bytes(self) -> float:
    """What a device sends each time, in a ring or directly: the least possible."""
    others = self.group_size - 1
    if self.name == "reduce-scatter":
      return self.result_bytes * others
    if self.name == "collective-permute":
      return self.result_bytes
    twice = 2 if self.name == "all-reduce" else 1
    return twice * self.result_bytes * others / self.group_size


def find_collectives(program: str) -> Iterator[Collective]:
  """The collectives of a compiled program's text."""
  computations, entry = _computations(program)
  for function, times in _run_counts(computations, entry).items():
    for line in computations[function]:
      match = _LINE.search(line)
      if match is None:
        continue
      name, size, group = match["name"], _result_bytes(match), 2
      if name != "collective-permute":
        group = _group_size(match["rest"])
      if function.startswith("all-reduce-scatter"):  # So are they written for TPUs.
        name, size = "reduce-scatter", size // group
      yield Collective(name, size, group, times)


def sent_by_kind(program: str) -> dict[str, float]:
  """Bytes that a device sends in operations of each kind."""
  total: dict[str, float] = collections.Counter()
  for collective in find_collectives(program):
    total[collective.name] += collective.times * collective.sent_bytes()
  return dict(total)


def estimated_cycles(program: str) -> int:
  """The TPU compiler's estimate for a step."""
  computations, entry = _computations(program)
  return sum(
    times * int(cycles)
    for function, times in _run_counts(computations, entry).items()
    for cycles in _CYCLES.findall("\n".join(computations[function]))
  )


def expected_bytes(
  num_rows: int,
  num_parameters: int,
  restart: int,
  data: int,
  *,
  summed_by: str = "all-reduce",
) -> dict[str, float]:
  """The formulas of docs/scaling.md: bytes that a device sends for large arrays.

  Args:
    num_rows: K.
    num_parameters: d, all in tensors that are split.
    restart: R, devices that split the restarts.
    data: D, devices that split the batch.
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


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
  """(Name -> lines of each function of the program, the name of the first to run)."""
  computations: dict[str, list[str]] = {}
  name = entry = ""
  for line in program.splitlines():
    header = _HEADER.match(line)
    if header is not None:
      name = header["name"]
      computations[name] = []
      if line.startswith("ENTRY"):
        entry = name
    elif name:
      computations[name].append(line)
  return computations, entry


def _run_counts(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often each function runs, of those that run at all."""
  counts: dict[str, int] = collections.Counter()

  def visit(name: str, times: int) -> None:
    counts[name] += times
    for line in computations[name]:
      called = {match["role"]: match["names"] for match in _CALLED.finditer(line)}
      turns = _turns(line, computations, called) if "condition" in called else 1
      for callee in re.findall(r"%([\w.-]+)", " ".join(called.values())):
        visit(callee, times * turns)

  visit(entry, 1)
  return counts


def _turns(
  loop: str, computations: dict[str, list[str]], called: dict[str, str]
) -> int:
  """How often a loop turns: as XLA notes, or `i < constant` says; else once."""
  noted = _TRIP_COUNT.search(loop)
  if noted is not None:
    return int(noted[1])
  condition = "\n".join(computations[called["condition"][1:]])
  test = re.search(r"ROOT .* compare\(%\S+, %(\S+)\), direction=LT", condition)
  limit = test and re.search(rf"%{test[1]} = .* constant\((\d+)\)", condition)
  return int(limit[1]) if limit else 1


def _result_bytes(match: re.Match[str]) -> int:
  """The size of the result; what starts an operation has its operands beside it."""
  arrays = [_num_bytes(*array) for array in _ARRAY.findall(match["type"])]
  if match["start"] and match["name"] == "all-gather":
    return sum(arrays[len(arrays) // 2 :])
  if match["start"] and match["name"] == "collective-permute":
    return arrays[1]
  return sum(arrays)


def _num_bytes(kind: str, bits: str, shape: str) -> int:
  size = math.prod(int(extent) for extent in shape.split(",") if extent)
  return size * (1 if kind == "pred" else int(bits) // 8)


def _group_size(rest: str) -> int:
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
  if listed:
    return len(listed[1].split(","))
  counted = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
  if counted:
    return int(counted[1])
  axes = re.search(r"replica_groups=mesh\[(.*?)\].*?\{((?:'\w+',?)+)\}", rest)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"\w+", axes[2]))
  raise ValueError(f"replica groups of an unknown form: {rest}")


def _lower_for_cpus(changes: dict[str, Any]) -> tuple[Any, int]:
  """The step lowered for virtual CPU devices, and the number of parameters."""
  work = workload.create("danskin", changes)
  return work.lower(), _num_parameters(work.state)


def _lower_for_tpus(changes: dict[str, Any]) -> tuple[Any, int]:
  """The same for TPUs that are described, not there."""
  config = workload.create_config("danskin", changes)
  topology = topologies.get_topology_desc(_TOPOLOGY.value, platform="tpu")
  shape = (config.mesh.data, config.mesh.restart)
  mesh = Mesh(np.array(topology.devices)[: math.prod(shape)].reshape(shape), meshes.ALL)
  images = ImageKind((32, 32, 3), 10, (0.5,) * 3, (0.25,) * 3)
  network = create_model(config, images, abstract=True)
  apply, params, model_state = models.functional(network)
  parts = train_step.create_parts(
    config, apply, steps_per_epoch=1, total_steps=1, max_value=255, mesh=mesh
  )
  state = jax.eval_shape(
    lambda *trees: create_train_state(*trees, parts.optimizer), params, model_state
  )
  where = train_step.state_shardings(state, mesh, config.mesh.fsdp)
  step = train_step.create_train_step(parts)
  lowered = train_step.jit_step(step, config, state, mesh).lower(
    jax.tree.map(_described, state, where),
    _described_batch(config.batch_size, mesh),
    Hyperparameters(config.seed, config.optimizer.learning_rate),
  )
  return lowered, _num_parameters(state)


def _described_batch(size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  by_example = NamedSharding(mesh, PartitionSpec(meshes.DATA))
  arrays = {
    "image": np.zeros((size, 32, 32, 3), np.uint8),
    "label": np.zeros(size, np.int32),
    "index": np.zeros(size, np.int32),
  }
  return {name: _described(array, by_example) for name, array in arrays.items()}


def _described(array: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _num_parameters(state: TrainState) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def main(argv: list[str]) -> None:
  """Prints a line for every mesh."""
  del argv
  shapes = [tuple(int(size) for size in text.split("x")) for text in _MESH.value]
  jax.config.update("jax_num_cpu_devices", max(math.prod(shape) for shape in shapes))
  jax.config.update("jax_platforms", "cpu")
  print(workload.describe() + "\n", flush=True)
  lower, summed_by, extra = _lower_for_cpus, "all-reduce", []
  if _TOPOLOGY.value:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.default_backend = lambda: "tpu"  # The loops and the convolutions ask it.
    lower, summed_by, extra = _lower_for_tpus, "reduce-scatter", ["10^6 cycles"]
  titles = ["restart x data", *_OPERATIONS, "temporaries (MiB)", *extra]
  print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
  for restart, data in shapes:
    changes = {
      "mesh.restart": restart,
      "mesh.data": data,
      "mesh.fsdp": _FSDP.value,
      "evaluation.batch_size": restart * data,
    }
    lowered, size = lower(changes)
    compiled = lowered.compile()
    program = compiled.as_text()
    sent = sent_by_kind(program)
    expected = expected_bytes(
      flags.FLAGS.num_restarts, size, restart, data, summed_by=summed_by
    )
    cells = [f"{restart} x {data}"]
    for kind in _OPERATIONS:
      formula = f" ({expected[kind]:,.0f})" if kind in expected else ""
      cells.append(f"{sent.get(kind, 0):,.0f}{formula}")
    cells.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f}")
    if extra:
      cells.append(f"{estimated_cycles(program) / 1e6:.1f}")
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
