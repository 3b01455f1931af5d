"""The time that a user waits on a CPU: compilation, first calls, short calls.

python benchmarks/cold_start.py

The data are scikit-learn's digits, with a small convolutional network and l_inf
attacks; the minimax problem is a published one.  The compilation time is JAX's own
figure (tracing, lowering and XLA).  CPU seconds count all threads, and vary less than
wall time on a shared machine.  No compilation cache is used.  The script prints a
Markdown table.
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
import warnings

from absl import app, flags
import jax
import jax.numpy as jnp
from machine import describe_machine
from minimax_problems import PROBLEMS
import numpy as np
import optax

import ddi_jax
from ddi_jax import data, losses, models

_TRAINING = flags.DEFINE_bool("training", True, "Whether to run launch.py as well.")
_ROOT = Path(__file__).parent.parent
_THREAT_MODEL = ddi_jax.linf(0.05)
_COMPILATION = "/jax/core/compile/"


def main(_: list[str]) -> None:
  """Measure and print."""
  warnings.simplefilter("ignore")  # Hide warnings of the evaluation.
  jax.config.update("jax_enable_compilation_cache", False)
  print(describe_machine("jax", "jaxlib", "flax", "optax") + "\n")
  print("| what | seconds | of which compilation | CPU seconds | programs |")
  print("|---|---|---|---|---|", flush=True)
  if _TRAINING.value:
    _train()
  logits_fn, images, labels = _network()
  key = jax.random.key(0)
  autoattack = ddi_jax.autoattack(_THREAT_MODEL)
  for call in ("first", "second"):
    with _timed(f"`autoattack`, 300 images, {call} call"):
      autoattack(key, logits_fn, images[:300], labels[:300])
  jax.clear_caches()
  for call in ("first", "second"):
    with _timed(f"`evaluate`, 100 images, {call} call"):
      ddi_jax.evaluate(key, logits_fn, images[:100], labels[:100], _THREAT_MODEL)
  problem = next(problem for problem in PROBLEMS if problem.name == "CB2")
  for call in ("first", "second"):
    with _timed(f"`minimize_max`, {problem.name}, {call} call"):
      start = jnp.array(problem.start)
      jax.block_until_ready(ddi_jax.minimize_max(problem.losses_fn, start))
  _short_calls()


def _train() -> None:
  """Time the first run of the README, to its end and to its first line of figures."""
  command = [sys.executable, "launch.py", "--config=configs/digits.py"]
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    metrics = Path(folder) / "run" / "metrics.jsonl"
    with subprocess.Popen(
      [*command, f"--workdir={folder}/run"],
      cwd=_ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    ) as process:
      while process.poll() is None and not (
        metrics.exists() and metrics.stat().st_size
      ):
        time.sleep(0.05)
      first = time.perf_counter() - began
    if process.returncode:
      raise RuntimeError(f"launch.py ended with status {process.returncode}.")
  _print("`launch.py`, configs/digits.py, to its first figures", f"{first:.1f}")
  _print("the same, to the end", f"{time.perf_counter() - began:.1f}")


def _print(name: str, *cells: Any) -> None:
  cells = (*cells, *("",) * (4 - len(cells)))
  print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)


def _network() -> tuple[Any, np.ndarray, np.ndarray]:
  """A network trained for 100 steps on clean images, its images and labels.

  The network is a `Partial`.
  """
  splits = data.load("digits", validation_size=200)
  images = np.asarray(splits.train.images, np.float32) / splits.max_value
  labels = np.asarray(splits.train.labels)
  model = models.create_model(
    "small",
    image_shape=images.shape[1:],
    num_classes=10,
    mean=(0.3,),
    std=(0.4,),
    settings={"width": 8},
    seed=0,
  )
  apply, params, model_state = models.functional(model)
  optimizer = optax.adam(1e-2)

  def logits_fn(params: Any, inputs: jax.Array) -> jax.Array:
    return apply(params, model_state, inputs, train=False)[0]

  @jax.jit
  def step(params: Any, state: Any) -> tuple[Any, Any]:
    def loss(params: Any) -> jax.Array:
      return losses.cross_entropy(logits_fn(params, images[:500]), labels[:500]).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(100):
    params, state = step(params, state)
  return jax.tree_util.Partial(logits_fn, params), images, labels


@contextlib.contextmanager
def _timed(name: str) -> Iterator[None]:
  """Time the computation in the `with` block, and print a line about it."""
  seconds: dict[str, list[float]] = collections.defaultdict(list)

  def listen(event: str, duration: float, **_: Any) -> None:
    if event.startswith(_COMPILATION):
      seconds[event].append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  began, cpu = time.perf_counter(), time.process_time()
  yield
  wall, cpu = time.perf_counter() - began, time.process_time() - cpu
  jax.monitoring.unregister_event_duration_listener(listen)
  compiling = sum(sum(durations) for durations in seconds.values())
  programs = len(seconds[f"{_COMPILATION}backend_compile_duration"])
  _print(name, f"{wall:.1f}", f"{compiling:.1f}", f"{cpu:.1f}", programs)


def _short_calls() -> None:
  """Time functions that are called from Python many times."""
  rows = np.random.default_rng(0).normal(size=(8, 100)).astype(np.float32)
  gram = jnp.asarray(rows @ rows.T)
  gradients = {"w": jnp.asarray(rows), "b": jnp.asarray(rows[:, :10])}
  params = jax.tree.map(lambda leaf: leaf[0], gradients)
  direction = ddi_jax.danskin_direction()
  state = direction.init(params)
  _print_microseconds("`min_norm_weights`", lambda: ddi_jax.min_norm_weights(gram))
  _print_microseconds(
    "`danskin_direction().update`, not jitted",
    lambda: direction.update(gradients, state, params),
  )


def _print_microseconds(name: str, call: Callable[[], Any]) -> None:
  """Print the median time of 200 blocking calls, after some calls to warm up."""
  seconds = []
  for _ in range(220):
    began = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - began)
  median = statistics.median(seconds[20:])
  _print(f"{name}, K = 8", f"{median * 1e6:.0f} microseconds")


if __name__ == "__main__":
  app.run(main)
