"""Print results as small tables, whatever arrays they hold."""

from collections.abc import Callable, Sequence
import html
from typing import Any, TypeVar

import jax
import numpy as np

Rows = Sequence[Sequence[str]]
Table = tuple[Rows, Sequence[str]]

_Class = TypeVar("_Class", bound=type)
_MOST_VALUES = 8  # A larger array is summarised.


def printed_as_table(cls: _Class) -> _Class:
  """Let a named tuple print as a small table, in notebooks as HTML.

  The class may have a method `table(self)` that returns (rows of cells, notes).
  Without this method, the table has a row for each field, with arrays summarised.
  """
  decorated: Any = cls
  table: Callable[[Any], Table] = getattr(cls, "table", table_of_fields)

  def as_text(self: Any) -> str:
    rows, notes = table(self)
    return "\n".join([*align(rows), *notes])

  def as_html(self: Any) -> str:
    rows, notes = table(self)
    lines = [
      f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
      for row in rows
    ]
    paragraphs = [f"<p>{html.escape(note)}</p>" for note in notes]
    return "\n".join(["<table>", *lines, "</table>", *paragraphs])

  decorated.__repr__, decorated._repr_html_ = as_text, as_html
  return cls


def table_of_fields(result: Any) -> Table:
  """A row for each field of a named tuple, without notes."""
  rows = [(name, summary(value)) for name, value in result._asdict().items()]
  return [(type(result).__name__, ""), *rows], ()


def summary(tree: Any) -> str:
  """A short description of a tree of arrays, or its values if they are few."""
  leaves = jax.tree.leaves(tree)
  if len(leaves) > 1:
    return f"{len(leaves)} leaves, {sum(map(np.size, leaves)):,} values"
  if not leaves:
    return "-"
  return _summary_of_leaf(leaves[0])


def _summary_of_leaf(leaf: Any) -> str:
  if not hasattr(leaf, "dtype"):
    text = f"{leaf:.6g}" if isinstance(leaf, float) else str(leaf)
    return text if len(text) < 60 else f"{text[:56]} ..."
  kind = f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
  is_number = jax.dtypes.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
  is_here = isinstance(leaf, np.ndarray | np.generic | jax.Array)
  is_here = is_here and not isinstance(leaf, jax.core.Tracer) and leaf.size > 0
  if not is_number or not is_here or not getattr(leaf, "is_fully_addressable", True):
    return kind
  values = np.asarray(leaf)
  if values.size <= _MOST_VALUES and values.ndim < 2:
    return np.array2string(values, precision=4, separator=", ")
  if values.dtype == bool:
    return f"{kind}, {np.sum(values):,} true"
  return f"{kind}, {float(np.min(values)):.4g} to {float(np.max(values)):.4g}"


def align(rows: Rows) -> list[str]:
  """The lines of a table: the first column aligned left, the others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.ljust(width) if index == 0 else cell.rjust(width)
      for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def doubts(warnings: Sequence[str], finished: bool = True) -> tuple[str, list[str]]:
  """The sign and the notes to print with a robust accuracy.

  Attacks can only bound a robust accuracy from above.

  Args:
    warnings: the warnings of the evaluation, that is, reasons to doubt it.
    finished: whether all attacks have been run.

  Returns:
    (the text before the figure: "<= " if there is a reason to doubt it, else "";
    notes).
  """
  notes = []
  if not finished:
    notes.append("The attacks were stopped: robust accuracies are upper bounds.")
  if warnings:
    notes.append(
      "Robust accuracies are upper bounds.  The warnings say why they may be far too "
      "high:"
    )
  return "<= " if notes else "", [*notes, *warnings]
