"""The time and memory of one DDi training step and of its parts.

python benchmarks/step.py --width=16 --batch_size=64 --num_restarts=4 --steps=7

The script times the program's compiled training step, one PGD step for comparison, and
the step's parts, each compiled by itself on the same arrays.  For model FLOP/s, XLA's
cost analysis counts the FLOPs in one input gradient and one parameter gradient, which
are compiled alone because the body of a loop is counted once.  These are multiplied by
the number of gradients.  The speed is compared with a large matrix product on the same
machine.  Memory is what XLA plans for arguments, results and temporaries.  The script
prints Markdown tables.
"""

import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import workload

from ddi_jax import data, losses
from ddi_jax.directions import min_norm
from ddi_jax.gradients.gram import shifted_gram
from ddi_jax.models.convolution.xla_options import compiler_options

_AT_A_TIME = flags.DEFINE_integer(
  "restarts_at_a_time",
  None,
  "Number of restarts computed at once; by default as in the config.",
)
_GIBI = 2**30


def _matmul_flops_per_second() -> float:
  """The best speed of some large float32 matrix products."""
  size = 4096 if jax.default_backend() != "cpu" else 2048
  matrix = jnp.ones((size, size))
  multiply = jax.jit(lambda a: jnp.matmul(a, a))
  multiply(matrix).block_until_ready()
  seconds = []
  for _ in range(5):
    began = time.perf_counter()
    multiply(matrix).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds)


def _flops(fn, *args) -> float:
  return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def _parts(work):
  """Calls of the parts of the step by name, and the FLOPs of the two gradients."""
  config, experiment = work.config, work.experiment
  parts, state = experiment.parts, experiment.start()
  rate = experiment.hyperparameters.learning_rate
  inputs, labels = jnp.asarray(work.images / 255.0, jnp.float32), work.labels
  options = compiler_options(config.model.width)

  def jit(fn):
    return jax.jit(fn, compiler_options=options)

  @jit
  def candidates_of(state, inputs, key):
    return parts.candidates(state, inputs, labels, None, key, key).points

  @jit
  def gradients_of(state, candidates):
    return parts.gradients(state, candidates, labels, rate).updates

  inner_of, solve, update = jit(shifted_gram), jit(min_norm.solve), jit(_update(parts))
  rng = np.random.default_rng(0)
  dataset = data.Dataset(
    rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32)
  )
  batches = data.training_batches(
    dataset, config.batch_size, seed=0, start=0, stop=10_000
  )

  key = jax.random.key(0)
  candidates = candidates_of(state, inputs, key)
  gradients = gradients_of(state, candidates)
  inner, _ = inner_of(gradients)
  calls = {
    "K attacks": lambda: candidates_of(state, inputs, key),
    "K gradients": lambda: gradients_of(state, candidates),
    "inner products": lambda: inner_of(gradients),
    "solver": lambda: solve(inner),
    "direction and update": lambda: update(gradients, state),
    "data: the next batch": lambda: next(batches),
    "validation of a batch (PGD-20)": lambda: experiment.validate(
      state, experiment.splits.validation
    ),
  }

  def total(params, inputs):
    logits, _ = work.apply(params, state.model_state, inputs, train=True)
    return losses.cross_entropy(logits, labels).mean()

  input_flops = _flops(jax.grad(total, argnums=1), state.params, inputs)
  parameter_flops = _flops(jax.grad(total), state.params, inputs)
  count = config.num_restarts
  flops = {
    "K attacks": count * config.attack.steps * input_flops,
    "K gradients": count * parameter_flops,
  }
  return calls, flops


def _update(parts):
  """The function from K gradients to the optimiser's update."""

  def update(gradients, state):
    return parts.optimizer.update(gradients, state.opt_state, state.params)

  return update


def main(_):
  """Time and print."""
  print(workload.describe() + "\n", flush=True)
  changes = {
    "restarts_at_a_time": _AT_A_TIME.value,
    "evaluation.batch_size": flags.FLAGS.batch_size,
  }
  work, pgd = (workload.create(method, changes) for method in ("danskin", "pgd"))
  whole = {"step": workload.CompiledStep(work), "pgd": workload.CompiledStep(pgd)}
  calls, flops = _parts(work)
  seconds = workload.median_seconds({**whole, **calls})
  peak = _matmul_flops_per_second()
  flops["step"] = sum(flops.values())
  num_restarts = work.config.num_restarts

  def row(name, title):
    speed = flops[name] / seconds[name] if name in flops else None
    cells = [
      title,
      f"{1e3 * seconds[name]:.3g}",
      f"{seconds[name] / seconds['step']:.1%}",
    ]
    cells += [f"{speed / 1e9:.0f}", f"{speed / peak:.0%}"] if speed else ["", ""]
    print("| " + " | ".join(cells) + " |")

  print("| part | ms | of the step | model GFLOP/s | of the matrix product's |")
  print("|---|---|---|---|---|")
  row("step", "the whole step")
  for name in calls:
    row(name, name)
  stored = num_restarts * sum(
    leaf.nbytes for leaf in jax.tree.leaves(work.state.params)
  )
  print(
    f"\nOne PGD step: {1e3 * seconds['pgd']:.3g} ms; the DDi step is "
    f"{seconds['step'] / (num_restarts * seconds['pgd']):.2f} times K of them.\n"
    f"Matrix product: {peak / 1e9:.0f} GFLOP/s. "
    f"Compilation: {whole['step'].compile_seconds:.0f} s. "
    f"Peak memory: {whole['step'].bytes / _GIBI:.3f} GiB, of which the K gradients "
    f"{stored / _GIBI:.3f} GiB."
  )


if __name__ == "__main__":
  app.run(main)
