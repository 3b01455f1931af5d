"""The final table of a run, which also lists other runs in the same folder."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from ddi_jax.tables import align

SUMMARY_FILE = "summary.json"


def format_report(workdir: Path, summary: Mapping[str, Any]) -> str:
  """A table of a finished run's results, and the location of its files.

  For comparison, the table lists runs on the same data and attack in sibling folders.
  """
  prefix = "robust_accuracy_"  # Followed by a norm if there are several threat models.
  norms = [name.removeprefix(prefix) for name in summary if name.startswith(prefix)]
  fields = ["clean_accuracy", "robust_accuracy", *(prefix + norm for norm in norms)]
  fields.append("mean_confidence")
  rows = [
    _row("this run, best on validation", summary, fields),
    _row("this run, last step", summary["last"], fields),
    _row("before training", summary["initial"], fields),
  ]
  for path in sorted(workdir.parent.glob(f"*/{SUMMARY_FILE}")):
    if path.parent == workdir:
      continue
    try:
      other = json.loads(path.read_text())
      same = ("data", "attack", "test_images")
      if all(other[name] == summary[name] for name in same):
        rows.append(_row(path.parent.name, other, fields))
    except (OSError, ValueError, KeyError, TypeError):  # Not a file of this program.
      continue
  header = ("", "clean", "robust", *norms, "confidence")
  lines = [
    f"{summary['method']} on {summary['data']}, {summary['steps']} steps in "
    f"{summary['seconds']:.0f} s.  Test accuracy, robust against {summary['attack']}:",
    "",
    *align([header, *rows]),
    "",
    f"Files in {workdir}: summary.json, curves.png, metrics.jsonl, config.json, "
    "checkpoints/, tensorboard/",
  ]
  return "\n".join(lines)


def _row(
  name: str, result: Mapping[str, Any], fields: Sequence[str]
) -> tuple[str, ...]:
  return (name, *(f"{result[field]:.3f}" for field in fields))
