"""Figures that are written atomically (whole or not at all)."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddi_jax.training.storage import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@contextlib.contextmanager
def saved_figure(path: Path, size: tuple[float, float], style: Any) -> Iterator[Figure]:
  """A figure to draw on, which is saved to `path` if the block succeeds.

  Args:
    path: where to save the figure.
    size: width and height in inches.
    style: some of matplotlib's rcParams, by name.
  """
  # Imported here because it takes half a second: an invalid config is refused sooner.
  import matplotlib  # noqa: PLC0415
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
  from matplotlib.figure import Figure  # noqa: PLC0415

  with matplotlib.rc_context(style):
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    yield figure
    with files.replacing(path) as temporary:
      canvas.print_png(temporary)  # Unlike savefig, it draws only once.
