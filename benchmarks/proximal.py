"""The fall of the robust loss in one step along each direction, and its cost.

python benchmarks/proximal.py
python benchmarks/proximal.py --data=mnist --data_dir=DIR

A small network, for scikit-learn's digits by default, is trained for a while on each
example's worst of an l_inf, an l2 and an l1 attack (MAX).  Every method then takes a
step -t z from the same parameters and batches.  Fresh, longer attacks measure the mean
over examples of the worst loss, before and after the step.  Passes are forward passes
over the batch, without those of the attacks (a gradient counts as 3, a Jacobian-vector
product as 2).  The script prints a Markdown table for each t.
"""

from absl import app, flags
import jax
from machine import describe_machine
import numpy as np
from progress import progress
import small_network

import ddi_jax

_STEPS = flags.DEFINE_integer("steps", 200, "Training steps before the comparison.")
_LENGTHS = flags.DEFINE_multi_float("lengths", [0.1, 0.3, 1.0], "Values of t.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches over which to take the mean.")
_COUNT = flags.DEFINE_integer("count", 1, "Candidates in each of the three norms.")

# Settings of ddi_jax.proximal_danskin_gradient.
METHODS = {
  "MAX": {"iterations": 0},
  "DDi": {"per": "batch", "step": 1e6, "tolerance": 1e-3, "iterations": 20},
  "bundle, per batch": {"per": "batch", "tolerance": 1e-3, "iterations": 20},
  "per example, 1 iteration": {"iterations": 1, "tolerance": 0.0},
  "per example, 10 %": {"iterations": 30, "tolerance": 0.1},
  "per example, 1 %, memory 1": {"iterations": 30, "tolerance": 0.01, "memory": 1},
  "per example, 1 %, memory 4": {"iterations": 30, "tolerance": 0.01, "memory": 4},
  "per example, 1 %, memory 30": {"iterations": 30, "tolerance": 0.01, "memory": 30},
}


def main(argv: list[str]) -> None:
  """Train, then compare single steps."""
  del argv
  print(describe_machine("jax", "ddi_jax"))
  threats = small_network.threat_models()
  source = small_network.restarts_in(threats, steps=8, count=_COUNT.value)
  strong = small_network.restarts_in(threats, steps=20, count=2)
  network = small_network.create(_BATCH_SIZE.value)
  network = small_network.train_on_worst(network, source, _STEPS.value)
  robust_loss = small_network.robust_loss(network, strong)
  num_candidates = len(threats) * _COUNT.value

  @jax.jit
  def candidates(key, inputs, labels):
    return source(key, lambda x: network.logits(network.params, x), inputs, labels)

  @jax.jit
  def average(points, labels, length):
    gradients, _ = ddi_jax.candidate_gradients(
      network.loss, network.params, points, labels
    )
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)
    return small_network.moved(network.params, mean, length), 3 * num_candidates, 0.0

  def compile_method(settings):
    @jax.jit
    def take_step(points, labels, length):
      z, info = ddi_jax.proximal_danskin_gradient(
        network.loss, network.params, points, labels, **({"step": length} | settings)
      )
      after = small_network.moved(network.params, z, length)
      return after, info.passes, info.predicted_decrease

    return take_step

  steps = {name: compile_method(settings) for name, settings in METHODS.items()}
  batches = []
  for index in range(_BATCHES.value):
    attack_key, test_key = jax.random.split(jax.random.key(100 + index))
    inputs, labels = network.batch()
    before = robust_loss(network.params, test_key, inputs, labels)
    points = candidates(attack_key, inputs, labels)
    batches.append((test_key, inputs, labels, points, before))
  for length in progress(_LENGTHS.value):
    print(f"\nt = {length}\n")
    print("| method | fall | standard error | predicted | passes |")
    print("|---|---|---|---|---|")
    for name, step in ({"AVG": average} | steps).items():
      falls, foretold, passes = [], [], []
      for test_key, inputs, labels, points, before in batches:
        after, spent, predicted = step(points, labels, length)
        falls.append(float(before - robust_loss(after, test_key, inputs, labels)))
        foretold.append(float(predicted))
        # The certificate of MAX costs more than its step.
        passes.append(num_candidates + 3 if name == "MAX" else float(spent))
      fall, error = small_network.mean_and_error(falls)
      # The predicted decrease of AVG and DDi is not that of their step.
      text = "" if name in ("AVG", "DDi") else f"{np.mean(foretold):.4f}"
      cells = f"{fall:.4f} | {error:.4f} | {text} | {np.mean(passes):.1f}"
      print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
  app.run(main)
