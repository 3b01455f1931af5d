"""launch.py on NUM_DEVICES virtual devices, which also records what it trains on.

It writes down the labels that this process read.  With SIGNAL_AT=N in the environment,
the process gets SIGNAL when it asks for batch N.
"""

import json
import os
from pathlib import Path
import runpy
import signal
import sys

import jax

from ddi_jax import data

ROOT = Path(__file__).parents[3]


def main():
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", int(os.environ["NUM_DEVICES"]))
  record = Path(sys.argv.pop(1))
  training_batches = data.training_batches
  labels: list[list[int]] = []
  signal_at = os.environ.get("SIGNAL_AT")

  def recorded(*args, **settings):
    for batch in training_batches(*args, **settings):
      if str(len(labels)) == signal_at:
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
      labels.append(batch["label"].tolist())
      yield batch

  data.training_batches = recorded
  sys.path.insert(0, str(ROOT))
  try:
    runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
  finally:
    record.write_text(json.dumps(labels))


if __name__ == "__main__":
  main()
