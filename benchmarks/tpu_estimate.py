"""The cost of a training step on TPUs, as estimated by their compiler.

python benchmarks/tpu_estimate.py --config=configs/cifar10.py --topology=v5e:2x2
python benchmarks/tpu_estimate.py --config=configs/imagenet.py --topology=v6e:4x4 \
  --num_restarts=4 --attack_dtypes=bfloat16 --restarts=sequential

The script compiles the config's step for chips that need not exist (`pip install
libtpu`).  It prints a line of a Markdown table for every K, dtype of the attack and
arrangement of the restarts.  Nothing is run or allocated.  A compilation takes minutes.

The time is an estimate: the compiler's static count of cycles for each operation, times
the turns of its loops, at the clock rate that the chip's published peak implies.  It
does not include contention for memory, communication and the host.  We have never
compared it with a real chip.  Use it to compare programs with each other.

The share of the matrix unit's peak counts the multiplications and additions of all
convolutions and matrix products, without those by zeros of padding and dilation.
"""

import collections
from collections.abc import Iterator
import itertools
from typing import Any, NamedTuple

from absl import app, flags
from compiled_program import OTHER, Operation, find_collectives, operations
import described_tpus
from machine import versions
import ml_collections
from ml_collections import config_flags
from progress import progress

from ddi_jax import training
from ddi_jax.training.settings.methods import find_method
from ddi_jax.training.settings.sources import num_candidates

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU topology to compile for.")
_MESH = flags.DEFINE_list(
  "mesh", None, "Meshes, restart x data, comma-separated; by default 1 x all chips."
)
_BATCH_PER_CHIP = flags.DEFINE_integer(
  "batch_per_chip", None, "Batch per part of mesh.data; by default the batch is split."
)
_NUM_RESTARTS = flags.DEFINE_list("num_restarts", ["1", "4", "10"], "Values of K.")
_ATTACK_DTYPES = flags.DEFINE_list(
  "attack_dtypes", ["float32", "bfloat16"], "Types of the network under attack."
)
_RESTARTS = flags.DEFINE_list(
  "restarts", ["sequential", "vmapped"], "How the K restarts are computed."
)
_OPERATIONS = flags.DEFINE_integer(
  "operations", 0, "Number of slowest operations of each part to print as well."
)
_PARTS = ("attack", "gradients", "direction", "optimizer")
_GIB = 2**30


class Chip(NamedTuple):
  """Published figures of a chip (Google Cloud's pages "TPU v5e" and so on).

  Attributes:
    peak: bfloat16 FLOP/s.
    flops_per_cycle: FLOPs per cycle at that speed.  For v4 and v5 this is matrix units
      x rows x columns x 2.  For later chips it is the power of two that is close to the
      compiler's own estimate of a large matrix product.
    memory: memory in bytes.
    sent_per_second: bytes, half of the "bidirectional interconnect bandwidth".
  """

  peak: float
  flops_per_cycle: int
  memory: int
  sent_per_second: float

  @property
  def clock(self) -> float:
    """The clock rate in cycles per second."""
    return self.peak / self.flops_per_cycle


# By `jax.Device.device_kind`.  libtpu describes a v4 and a v7x chip as two devices.
CHIPS = {
  "TPU v4": Chip(137.5e12, 2**17, 16 * _GIB, 150e9),
  "TPU v5 lite": Chip(197e12, 2**17, 16 * _GIB, 200e9),
  "TPU v5": Chip(459e12, 2**18, 95 * _GIB, 600e9),
  "TPU v6 lite": Chip(918e12, 2**19, 32 * _GIB, 400e9),
  "TPU7x": Chip(1153.5e12, 2**19, 96 * _GIB, 300e9),
}


class Estimate(NamedTuple):
  """The compiler's estimate of a step on one chip.

  Attributes:
    operations: all operations for which the compiler estimates cycles.
    memory: bytes of arguments, results, temporaries and the program itself.
    sent: bytes sent, by part and kind of collective.
  """

  operations: list[Operation]
  memory: int
  sent: dict[tuple[str, str], float]

  def milliseconds(self, part: str | None, chip: Chip) -> float:
    """The time of a part in milliseconds; None stands for the whole step."""
    cycles = sum(o.times * o.cycles for o in self._of(part))
    return 1e3 * cycles / chip.clock

  def matrix_share(self, part: str | None, chip: Chip) -> float:
    """The FLOPs of a part divided by what the matrix units could do in its time."""
    cycles = sum(o.times * o.cycles for o in self._of(part))
    return sum(o.times * o.flops for o in self._of(part)) / max(
      cycles * chip.flops_per_cycle, 1
    )

  def _of(self, part: str | None) -> Iterator[Operation]:
    return (o for o in self.operations if part in (None, o.part))


def estimate(config: ml_collections.ConfigDict, devices: list[Any]) -> Estimate:
  """Compile a checked config's step for `config.mesh` of described devices."""
  lowered, _ = described_tpus.lower(config, devices)
  compiled = lowered.compile()
  program, memory = compiled.as_text(), compiled.memory_analysis()
  sent: dict[tuple[str, str], float] = collections.Counter()
  for collective in find_collectives(program, _PARTS):
    sent[collective.part, collective.name] += collective.times * collective.sent_bytes()
  return Estimate(
    list(operations(program, _PARTS)),
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
    - memory.alias_size_in_bytes,
    dict(sent),
  )


def changed(
  config: ml_collections.ConfigDict, changes: dict[str, Any]
) -> ml_collections.ConfigDict:
  """A checked copy of a config with some settings changed, by dotted name."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  config = training.drop_unused(config, keep=changes)
  training.check_config(config)
  return config


def _variants(
  config: ml_collections.ConfigDict, restart: int, data: int
) -> Iterator[tuple[str, str, ml_collections.ConfigDict]]:
  """The (dtype of the attack, arrangement, config) of each line of the table."""
  mesh = {"mesh.restart": restart, "mesh.data": data}
  mesh["evaluation.batch_size"] = restart * data
  if _BATCH_PER_CHIP.value is not None:
    mesh["batch_size"] = data * _BATCH_PER_CHIP.value
  repeats = find_method(config).restarts and not config.sources
  numbers = [int(n) for n in _NUM_RESTARTS.value if not int(n) % restart]
  for number, dtype, how in itertools.product(
    numbers if repeats else [num_candidates(config)],
    _ATTACK_DTYPES.value,
    _RESTARTS.value,
  ):
    if number == 1 and how != _RESTARTS.value[0]:
      continue
    changes = {**mesh, "attack.dtype": dtype}
    if repeats:
      changes["num_restarts"] = number
    changes["restarts_at_a_time"] = 1 if how == "sequential" else number
    yield dtype, how, changed(config, changes)


def _line(
  config: ml_collections.ConfigDict, dtype: str, how: str, result: Estimate, chip: Chip
) -> str:
  step = result.milliseconds(None, chip)
  sent_by_kind: dict[str, float] = collections.Counter()
  for (_, kind), size in result.sent.items():
    sent_by_kind[kind] += size
  sent = sum(sent_by_kind.values())
  of_attack = sum(size for (part, _), size in result.sent.items() if part == "attack")
  cells = [
    f"{config.mesh.restart} x {config.mesh.data}",
    f"{config.batch_size}",
    f"{num_candidates(config)}",
    dtype,
    how,
    f"{step:.3g}",
  ]
  for part in ("attack", "gradients"):
    time, share = result.milliseconds(part, chip), result.matrix_share(part, chip)
    cells.append(f"{time:.3g} ({share:.0%})")
  for part in ("direction", "optimizer", OTHER):
    time = result.milliseconds(part, chip)
    cells.append(f"{time:.3g} ({time / step:.1%})")
  kinds = ", ".join(
    f"{kind} {size / 1e6:.1f}" for kind, size in sorted(sent_by_kind.items())
  )
  cells += [
    f"{result.memory / _GIB:.2f} of {chip.memory / _GIB:.0f}",
    f"{sent / 1e6:.1f} ({kinds})" if sent else "0",
    f"{of_attack / 1e6:.1f}",
    f"{1e3 * sent / chip.sent_per_second:.2g}",
  ]
  return f"| {' | '.join(cells)} |"


def _slowest(result: Estimate, chip: Chip, count: int) -> Iterator[str]:
  for part in (*_PARTS, OTHER):
    of_part = [o for o in result.operations if o.part == part]
    of_part.sort(key=lambda o: -o.times * o.cycles)
    yield f"\n{part}, in all {result.milliseconds(part, chip):.2f} ms:\n"
    for o in of_part[:count]:
      time = 1e3 * o.times * o.cycles / chip.clock
      share = o.flops / max(o.cycles * chip.flops_per_cycle, 1)
      yield (
        f"- {time:.2f} ms, {o.times} times, {share:.0%} of the matrix peak: {o.kind} "
        f"`{o.name}` -> `{o.shape}`, `{o.scopes}`"
      )


def main(argv: list[str]) -> None:
  """Print the table."""
  del argv
  devices = described_tpus.describe(_TOPOLOGY.value)
  chip = CHIPS[devices[0].device_kind]
  print(
    f"`{flags.FLAGS['config'].value and _config_name()}` on {_TOPOLOGY.value} "
    f"({devices[0].device_kind}: {chip.peak / 1e12:g} bfloat16 TFLOP/s, clock "
    f"{chip.clock / 1e9:.2f} GHz, {chip.sent_per_second / 1e9:g} GB/s sent); "
    f"{versions('jax', 'libtpu')}.\n"
  )
  variants = []
  for mesh in _MESH.value or [f"1x{len(devices)}"]:
    restart, data = (int(size) for size in mesh.split("x"))
    if restart * data > len(devices):
      raise app.UsageError(
        f"--mesh={mesh} must have at most {len(devices)} chips, those of "
        f"--topology={_TOPOLOGY.value}."
      )
    variants += _variants(_CONFIG.value, restart, data)
  titles = ["restart x data", "batch", "K", "attack in", "restarts", "step, ms"]
  titles += ["attack, ms (of the matrix peak)", "gradients", "direction (of the step)"]
  titles += ["optimizer", "other", "memory, GiB", "sent, MB", "of it by the attack"]
  titles += ["ms to send"]
  print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
  for dtype, how, config in progress(variants):
    result = estimate(config, devices)
    print(_line(config, dtype, how, result, chip), flush=True)
    if _OPERATIONS.value:
      for line in _slowest(result, chip, _OPERATIONS.value):
        print(line, flush=True)


def _config_name() -> str:
  return config_flags.get_config_filename(flags.FLAGS["config"])


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
