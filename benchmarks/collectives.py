"""What a training step sends between devices, read from the compiled program.

python benchmarks/collectives.py --mesh=2x4 --num_restarts=4 --width=16

Compiles the step for virtual CPU devices, restart x data of them, and sets the bytes
of its collectives beside those of the formulas of docs/scaling.md.  Nothing runs.
Prints a Markdown table.
"""

import collections
from collections.abc import Iterator
import math
import re
from typing import NamedTuple

from absl import app, flags
import jax
import workload

from ddi_jax.training.packing import Packing

_MESH = flags.DEFINE_list("mesh", ["2x4"], "Meshes, restart x data, comma between.")
_FSDP = flags.DEFINE_bool("fsdp", False, "Parameters split over all devices.")
_OPERATIONS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
)
_LINE = re.compile(
  rf"= (?P<type>.*?) (?P<name>{'|'.join(_OPERATIONS)})(-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?\[([\d,]*)\]")


class Collective(NamedTuple):
  """One operation of a compiled program.

  Attributes:
    name: "all-gather" and so on.
    result_bytes: size of its result on a device.
    group_size: number of devices that take part together.
  """

  name: str
  result_bytes: int
  group_size: int

  def sent_bytes(self) -> float:
    """What a device sends, in a ring or directly: the least possible."""
    others = self.group_size - 1
    if self.name == "reduce-scatter":
      return self.result_bytes * others
    if self.name == "collective-permute":
      return self.result_bytes
    twice = 2 if self.name == "all-reduce" else 1
    return twice * self.result_bytes * others / self.group_size


def find_collectives(program: str) -> Iterator[Collective]:
  """The collectives of a compiled program's text, once each, those in loops too."""
  for line in program.splitlines():
    match = _LINE.search(line)
    if match is None:
      continue
    sizes = [_num_bytes(*array) for array in _ARRAY.findall(match["type"])]
    yield Collective(match["name"], sum(sizes), _group_size(match["rest"]))


def sent_by_kind(program: str) -> dict[str, float]:
  """Bytes that a device sends in operations of each kind."""
  total: dict[str, float] = collections.Counter()
  for collective in find_collectives(program):
    total[collective.name] += collective.sent_bytes()
  return dict(total)


def expected_bytes(
  num_rows: int, num_parameters: int, restart: int, data: int, itemsize: int = 4
) -> dict[str, float]:
  """The formulas of docs/scaling.md: bytes that a device sends for large arrays.

  Args:
    num_rows: K.
    num_parameters: d, with padding.
    restart: R, devices that split the restarts.
    data: D, devices that split the batch.
    itemsize: bytes per number.
  """
  gradients = num_rows / restart * num_parameters * itemsize
  devices = restart * data
  return {
    "reduce-scatter": gradients * (data - 1) / data,
    "all-to-all": gradients / data * (restart - 1) / restart,
    "all-gather": num_parameters * itemsize * (devices - 1) / devices,
  }


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


def main(argv: list[str]) -> None:
  """Prints a line for every mesh."""
  del argv
  shapes = [tuple(int(size) for size in text.split("x")) for text in _MESH.value]
  jax.config.update("jax_num_cpu_devices", max(math.prod(shape) for shape in shapes))
  jax.config.update("jax_platforms", "cpu")
  kinds = ("reduce-scatter", "all-to-all", "all-gather", "all-reduce")
  print(f"| restart x data | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
  for restart, data in shapes:
    changes = {
      "mesh.restart": restart,
      "mesh.data": data,
      "mesh.fsdp": _FSDP.value,
      "evaluation.batch_size": restart * data,
    }
    work = workload.create("danskin", {}, changes)
    step = work.train_step.lower(work.state, work.images, work.labels).compile()
    found = sent_by_kind(step.as_text())
    packing = Packing(work.state.params, restart * data)
    size = packing.num_rows * packing.num_columns
    expected = expected_bytes(work.config.num_restarts, size, restart, data)
    cells = [
      f"{found.get(kind, 0):,.0f} ({expected[kind]:,.0f})"
      if kind in expected
      else f"{found.get(kind, 0):,.0f}"
      for kind in kinds
    ]
    print(f"| {restart} x {data} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
