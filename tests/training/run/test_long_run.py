"""The shorter sister of benchmarks/long_run.py, which takes 20,000 steps."""

from pathlib import Path
import runpy

import pytest

LONG_RUN = Path(__file__).parents[3] / "benchmarks" / "long_run.py"


@pytest.mark.slow
def test_nothing_grows_with_the_steps(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(LONG_RUN.parent)
  long_run = runpy.run_path(str(LONG_RUN))
  samples, faults = long_run["run"](2_000, tmp_path / "run")
  assert len(samples) > 8
  assert faults == []
