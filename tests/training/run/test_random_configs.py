"""Configs at random: each trains with finite figures or is refused by name.

RANDOM_CONFIGS=2000 RANDOM_CONFIGS_SEED=1 python -m pytest -n 0 -s \
  tests/training/run/test_random_configs.py

There are 60 by default, and all that are accepted are trained.
"""

import os
from pathlib import Path
import subprocess
import sys

import pytest

WORKER = Path(__file__).with_name("random_configs.py")


@pytest.mark.slow
@pytest.mark.timeout(5 * int(os.environ.get("RANDOM_CONFIGS", "60")))
def test_each_trains_or_is_refused_by_name():
  result = subprocess.run([sys.executable, str(WORKER)], check=False)
  assert result.returncode == 0
