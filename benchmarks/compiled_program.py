"""Read from a compiled program's text what it computes, sends and costs.

An operation in a loop counts once for every turn of the loop.
"""

import collections
from collections.abc import Iterator, Sequence
import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "all-gather",
)
OTHER = "other"
_LINE = re.compile(
  rf"= (?P<type>.*?) (?P<name>{'|'.join(COLLECTIVES)})(?P<start>-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?\w*\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_CALLED = re.compile(
  r"\b(?P<role>body|condition|calls|to_apply|branch_computations|true_computation"
  r"|false_computation|called_computations)=\{?(?P<names>%[\w.-]+(?:, %[\w.-]+)*)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAMED = re.compile(r"%(?P<name>[\w.-]+) = (?P<type>.*?) (?P<kind>[a-z][\w-]*)\(")
_SCOPES = re.compile(r'op_name="([^"]*)"')
_CONVOLUTION = re.compile(
  r"= (?P<type>.*?) convolution\(%(?P<input>[\w.-]+), %(?P<kernel>[\w.-]+)\)"
  r"(?P<rest>.*)"
)
_LABELS = re.compile(r"dim_labels=(?P<input>\w+)_(?P<kernel>\w+)->(?P<output>\w+)")
_GROUPS = re.compile(r"batch_group_count=(\d+)")


class Collective(NamedTuple):
  """One operation of a compiled program that sends data between devices.

  Attributes:
    name: the kind of operation, for example "all-gather".
    result_bytes: size of its result on a device.
    group_size: number of devices that take part together.
    times: how often it runs in a step; a loop of unknown length counts as one turn.
    part: the named scope to which it belongs, see `operations`.
  """

  name: str
  result_bytes: int
  group_size: int
  times: int = 1
  part: str = OTHER

  def sent_bytes(self) -> float:
    """The least number of bytes that a device sends each time, in a ring or not."""
    others = self.group_size - 1
    if self.name == "reduce-scatter":
      return self.result_bytes * others
    if self.name == "collective-permute":
      return self.result_bytes
    twice = 2 if self.name == "all-reduce" else 1
    return twice * self.result_bytes * others / self.group_size


class Operation(NamedTuple):
  """One operation of a program for TPUs, including operations fused into it.

  Attributes:
    name: its name in the program.
    kind: the kind of operation, for example "fusion" or "copy".
    scopes: its place in the source, as named scopes and functions of jax; may be "".
    part: the named scope to which it belongs, see `operations`.
    times: how often it runs in a step.
    cycles: the compiler's estimate of its cycles for one run.
    flops: multiplications and additions of its convolutions in one run.
    shape: shape of its result, as written in the program.
  """

  name: str
  kind: str
  scopes: str
  part: str
  times: int
  cycles: int
  flops: int
  shape: str


class _Executed(NamedTuple):
  """A line of the program that is executed."""

  function: str
  line: str
  times: int
  part: str
  fused: bool


def operations(program: str, parts: Sequence[str] = ()) -> Iterator[Operation]:
  """The operations of a program for TPUs.

  Args:
    program: the text of the compiled program.
    parts: named scopes.  An operation belongs to the first of them in its own name,
      otherwise to the part of the loop that contains it, otherwise to "other".
  """
  computations, entry = _computations(program)
  for executed in _executed(computations, entry, parts):
    cycles = _CYCLES.search(executed.line)
    if executed.fused:
      continue
    flops = _flops(computations, executed.function, executed.line)
    if not (cycles or flops):
      continue
    named = _NAMED.search(executed.line)
    assert named is not None
    scopes = _SCOPES.search(executed.line)
    yield Operation(
      name=named["name"],
      kind=named["kind"],
      scopes=scopes[1] if scopes else "",
      part=executed.part,
      times=executed.times,
      cycles=int(cycles[1]) if cycles else 0,
      flops=flops,
      shape=named["type"],
    )


def estimated_cycles(program: str) -> int:
  """The TPU compiler's estimate of the cycles of a step."""
  return sum(each.times * each.cycles for each in operations(program))


def find_collectives(program: str, parts: Sequence[str] = ()) -> Iterator[Collective]:
  """The collective operations of a program; for `parts` see `operations`."""
  computations, entry = _computations(program)
  for function, line, times, part, _ in _executed(computations, entry, parts):
    match = _LINE.search(line)
    if match is None:
      continue
    name, size, group = match["name"], _result_bytes(match), 2
    if name != "collective-permute":
      group = _group_size(match["rest"])
    if function.startswith("all-reduce-scatter"):  # A reduce-scatter on TPUs.
      name, size = "reduce-scatter", size // group
    yield Collective(name, size, group, times, part)


def sent_by_kind(program: str) -> dict[str, float]:
  """The bytes that a device sends, by the kind of operation."""
  total: dict[str, float] = collections.Counter()
  for collective in find_collectives(program):
    total[collective.name] += collective.times * collective.sent_bytes()
  return dict(total)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
  """The lines of the program's functions by name, and the entry function's name."""
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


def _executed(
  computations: dict[str, list[str]], entry: str, parts: Sequence[str]
) -> Iterator[_Executed]:
  """All lines that are executed, and how often."""

  def visit(name: str, times: int, part: str, fused: bool) -> Iterator[_Executed]:
    for line in computations[name]:
      line_part = _part(line, parts) or part
      yield _Executed(name, line, times, line_part, fused)
      called = {match["role"]: match["names"] for match in _CALLED.finditer(line)}
      turns = _turns(line, computations, called) if "condition" in called else 1
      for role, names in called.items():
        inside = fused or role in ("calls", "to_apply")
        for callee in re.findall(r"%([\w.-]+)", names):
          yield from visit(callee, times * turns, line_part, inside)

  return visit(entry, 1, OTHER, fused=False)


def _part(line: str, parts: Sequence[str]) -> str | None:
  scopes = _SCOPES.search(line)
  if scopes is None:
    return None
  names = re.findall(r"\w+", scopes[1])
  return next((name for name in names if name in parts), None)


def _turns(
  loop: str, computations: dict[str, list[str]], called: dict[str, str]
) -> int:
  """The number of turns of a loop, from XLA's note or a test `i < constant`, or 1."""
  noted = _TRIP_COUNT.search(loop)
  if noted is not None:
    return int(noted[1])
  condition = "\n".join(computations[called["condition"][1:]])
  test = re.search(r"ROOT .* compare\(%\S+, %(\S+)\), direction=LT", condition)
  limit = test and re.search(rf"%{test[1]} = .* constant\((\d+)\)", condition)
  return int(limit[1]) if limit else 1


def _flops(computations: dict[str, list[str]], function: str, line: str) -> int:
  """FLOPs of the convolutions in a line of a function, including fused ones."""
  if (match := _CONVOLUTION.search(line)) is not None:
    shapes = {
      named["name"]: _shape(named["type"])
      for named in map(_NAMED.search, computations[function])
      if named is not None
    }
    return _convolution_flops(match, shapes[match["input"]], shapes[match["kernel"]])
  return sum(
    _flops(computations, callee, inner)
    for match in _CALLED.finditer(line)
    if match["role"] == "calls"
    for callee in re.findall(r"%([\w.-]+)", match["names"])
    for inner in computations[callee]
  )


def _convolution_flops(
  convolution: re.Match[str], inputs: Sequence[int], kernel: Sequence[int]
) -> int:
  """FLOPs of a convolution: two for each product, except with zeros.

  Products with zeros of padding or dilation do not count.
  """
  rest, output = convolution["rest"], _shape(convolution["type"])
  labels = _LABELS.search(rest)
  assert labels is not None
  groups = _GROUPS.search(rest)
  products = output[labels["output"].index("f")] * kernel[labels["kernel"].index("i")]
  products *= inputs[labels["input"].index("b")] // int(groups[1] if groups else 1)
  for axis in range(len(inputs) - 2):
    window = _window(rest, axis)
    positions = np.arange(output[labels["output"].index(str(axis))])[:, None]
    taps = np.arange(window["size"]) * window["rhs_dilate"]
    met = positions * window["stride"] + taps - window["pad"]
    last = (inputs[labels["input"].index(str(axis))] - 1) * window["lhs_dilate"]
    real = (met >= 0) & (met <= last) & (met % window["lhs_dilate"] == 0)
    products *= int(real.sum())
  return 2 * products


def _window(rest: str, axis: int) -> dict[str, int]:
  """The window settings of a convolution along an axis; `pad` is the lower padding."""
  settings = {"size": 1, "stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
  written = re.search(r"window=\{(.*?)\}", rest)
  for name, values in re.findall(r"(\w+)=([\dx_-]+)", written[1] if written else ""):
    settings[name] = int(values.split("x")[axis].split("_")[0])
  return settings


def _shape(text: str) -> tuple[int, ...]:
  """The shape of the first array in a type."""
  match = _ARRAY.search(text)
  assert match is not None
  return tuple(int(extent) for extent in match[3].split(",") if extent)


def _result_bytes(match: re.Match[str]) -> int:
  """The size of the result in bytes.

  The result of an operation's start also contains the operands, which do not count.
  """
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
