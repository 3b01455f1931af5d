"""The fall of the robust loss against the cost of making the candidates.

python benchmarks/candidates.py

A small network, for scikit-learn's digits by default (`--data`, `--epsilon`), is
trained for a while on each example's worst candidate in l_inf.  From the same
parameters and batches, every set of candidates gives a step -t z by each of three
methods.  Fresh, longer attacks measure the mean worst loss before and after the step,
and the fall is the difference.  Gradient evaluations are those needed per example to
make the candidates.  Warm starts come from attacks on the parameters of 10 steps
before.

The script prints a Markdown table.  The last column is the fall of the proximal form as
a share of its fall in the first row, 10 full restarts.
"""

from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags
import jax
from machine import describe_machine
from progress import progress
import small_network

import ddi_jax
from ddi_jax import candidates as sources

_STEPS = flags.DEFINE_integer("steps", 200, "Training steps before the comparison.")
_LENGTH = flags.DEFINE_float("length", 0.3, "t.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches over which to take the mean.")
_EPSILON = flags.DEFINE_float("epsilon", 0.15, "l_inf radius.")
_ONLY = flags.DEFINE_multi_string("only", None, "Rows to make; default all.")
_PGD_STEPS = 8


class CandidateSet(NamedTuple):
  """One row of the table.

  Attributes:
    make: (perturbations of earlier attacks `[K, B, ...]`) -> the source.
    evaluations: number of gradients that the source takes per example.
  """

  make: Callable[[jax.Array], sources.Source]
  evaluations: int


def candidate_sets(epsilon: float) -> dict[str, CandidateSet]:
  """The sets of candidates by the names of their rows."""
  model = ddi_jax.linf(epsilon)

  def settings(steps):
    return {"steps": steps, "step_size": 2.5 * epsilon / steps}

  def restarts(count, steps):
    attack = ddi_jax.pgd(model, **settings(steps))
    source = sources.restarts(attack, count)
    return CandidateSet(lambda moves: source, count * steps)

  def warm(count, steps):
    def make(moves):
      short = {"steps": steps, "step_size": epsilon / 4}
      return sources.warm_restarts(model, moves[:count], **short)

    return CandidateSet(make, count * steps)

  def fixed(source, evaluations):
    return CandidateSet(lambda moves: source, evaluations)

  attack = ddi_jax.pgd(model, **settings(_PGD_STEPS))
  return {
    "10 restarts, 8 steps": restarts(10, _PGD_STEPS),
    "3 restarts, 8 steps": restarts(3, _PGD_STEPS),
    "1 restart, 8 steps": restarts(1, _PGD_STEPS),
    "10 restarts, 2 steps": restarts(10, 2),
    "3 restarts, 2 steps": restarts(3, 2),
    "3 classes targeted, 8 steps": fixed(sources.targeted(attack, 3), 24),
    "3 warm starts, 2 steps": warm(3, 2),
    "1 warm start, 1 step": warm(1, 1),
    "4 R-FGSM": fixed(sources.r_fgsm(epsilon, 4), 4),
    "1 R-FGSM": fixed(sources.r_fgsm(epsilon, 1), 1),
  }


# Settings of ddi_jax.proximal_danskin_gradient.
METHODS = {
  "MAX": {"iterations": 0},
  "DDi": {"per": "batch", "step": 1e6, "tolerance": 1e-3, "iterations": 20},
  "proximal": {},
}


def main(argv: list[str]) -> None:
  """Train, then compare sets of candidates."""
  del argv
  print(describe_machine("jax", "ddi_jax"))
  network = small_network.create(_BATCH_SIZE.value)
  model = ddi_jax.linf(_EPSILON.value)
  training_source = small_network.restarts_in([model], steps=_PGD_STEPS, count=1)
  earlier = small_network.train_on_worst(network, training_source, _STEPS.value)
  network = small_network.train_on_worst(earlier, training_source, 10)
  strong = small_network.restarts_in([model], steps=20, count=4)
  robust_loss = small_network.robust_loss(network, strong)
  three = small_network.restarts_in([model], steps=_PGD_STEPS, count=3)
  params = network.params

  @jax.jit
  def old_moves(key, inputs, labels):
    points = three(key, lambda x: network.logits(earlier.params, x), inputs, labels)
    return points - inputs[None]

  def compile_set(candidate_set):
    @jax.jit
    def steps(key, moves, inputs, labels):
      source = candidate_set.make(moves)
      points = source(key, lambda x: network.logits(params, x), inputs, labels)
      after = []
      for settings in METHODS.values():
        z, _ = ddi_jax.proximal_danskin_gradient(
          network.loss, params, points, labels, **({"step": _LENGTH.value} | settings)
        )
        after.append(small_network.moved(params, z, _LENGTH.value))
      return after

    return steps

  batches = []
  for index in range(_BATCHES.value):
    keys = jax.random.split(jax.random.key(100 + index), 3)
    inputs, labels = network.batch()
    before = robust_loss(params, keys[0], inputs, labels)
    moves = old_moves(keys[1], inputs, labels)
    batches.append((keys, inputs, labels, before, moves))

  titles = " | ".join(f"{name} | error" for name in METHODS)
  print(f"\n| candidates | gradients | {titles} | of the first |")
  print("|---" * (3 + 2 * len(METHODS)) + "|")
  reference = None
  sets = candidate_sets(_EPSILON.value)
  for name in progress([name for name in sets if name in (_ONLY.value or sets)]):
    candidate_set = sets[name]
    steps = compile_set(candidate_set)
    falls: list[list[float]] = [[] for _ in METHODS]
    for keys, inputs, labels, before, moves in batches:
      for column, after in zip(
        falls, steps(keys[2], moves, inputs, labels), strict=True
      ):
        column.append(float(before - robust_loss(after, keys[0], inputs, labels)))
    found = [small_network.mean_and_error(column) for column in falls]
    reference = reference or found[-1][0]
    cells = " | ".join(f"{fall:.4f} | {error:.4f}" for fall, error in found)
    share = found[-1][0] / reference
    print(
      f"| {name} | {candidate_set.evaluations} | {cells} | {share:.2f} |", flush=True
    )


if __name__ == "__main__":
  app.run(main)
