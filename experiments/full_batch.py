"""Full-batch training on the worst class, at equal gradient evaluations.

python -m experiments.full_batch --output=docs/data  # two minutes on one core

The problem is min over theta of max over c of the mean cross-entropy of class c, plus
5e-4 |theta|^2.  It is a maximum of K = 10 smooth functions, and the last term ensures
that the minimum exists.  The data are scikit-learn's digits with noise.  The nets are
softmax regression, whose problem is convex, and a small MLP.

Every method gets the same budget.  A gradient set (the gradients of all K losses on the
whole training set, and the losses) costs 1.  The losses alone, which `minimax` computes
to search for a step, cost 1/3, because a backward pass costs twice as much as a forward
pass.  `minimax` does not take a step that would exceed the budget, and stops where
`ddi_jax.minimize_max` would.  The others use one gradient set in every step and pass
their direction to Adam, whose learning rate decays to 0 along a cosine.

Seed 0 chooses each method's learning rate and parameter by the greatest training loss
at the end of the budget.  Seeds 1, 2 and 3 compare the methods.  `minimax` has nothing
to choose.  A seed sets the split, the noise and the initial parameters.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from sklearn.datasets import load_digits

import ddi_jax
from experiments import program, sweep
from experiments.comparison import compared_runs, mean_and_deviation
from experiments.worst_class import group_dro_direction

NUM_CLASSES = 10
# Number of images per class, both for training and for testing.  The rarest class has
# 174 images.
PER_CLASS = 87
NOISE = 0.3  # Standard deviation of the noise.  Pixels are in [0, 1].
# With 1e-4, softmax regression loses test accuracy; with 1e-2, the MLP loses its fit.
WEIGHT_DECAY = 1e-3
FORWARD_COST = 1 / 3  # Cost of the K losses, in gradient sets.
TOLERANCE = 1e-5  # Relative tolerance of gap and gain, the default of `minimize_max`.
SEEDS = (0, 1, 2, 3)  # The first is for the sweep.

Params = list[jax.Array]  # Layers `[in + 1, out]`; the last row holds the biases.
Setting = tuple[float | None, float | None]  # (Learning rate, parameter).
Row = dict[str, Any]

NETS = {"softmax regression": (64, 10), "MLP 64-64-10": (64, 64, 10)}
LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
DIRECTIONS: dict[str, Callable[[Any], optax.GradientTransformationExtraArgs]] = {
  "mean loss": lambda _: ddi_jax.average_direction(normalize=False),
  "group DRO": lambda rate: group_dro_direction(rate, NUM_CLASSES),
  "DDi": lambda _: ddi_jax.danskin_direction(normalize=False),
  "DDi bundle": lambda t: ddi_jax.danskin_direction(normalize=False, bundle_step=t),
}
PARAMETERS: dict[str, Sequence[float]] = {
  "group DRO": (0.01, 0.03, 0.1, 0.3, 1.0),
  "DDi bundle": (0.01, 0.1, 1.0, 10.0, 100.0),
}
FIELDS = {
  "train_loss": "greatest loss, training",
  "train_worst_class": "worst class, training",
  "test_worst_class": "worst class, test",
  "test_accuracy": "all classes, test",
}


def load_images(seed: int) -> tuple[jax.Array, jax.Array]:
  """Return noisy digits by class, `[K, 87, 64]`, for training and for testing."""
  rng = np.random.default_rng((seed, 0))
  pixels, labels = load_digits(return_X_y=True)
  members = [rng.permutation(np.flatnonzero(labels == c)) for c in range(NUM_CLASSES)]
  images = pixels[np.stack([places[: 2 * PER_CLASS] for places in members])] / 16
  images = jnp.asarray(images + rng.normal(0, NOISE, images.shape), jnp.float32)
  return images[:, :PER_CLASS], images[:, PER_CLASS:]


def initial_params(sizes: Sequence[int], seed: int) -> Params:
  """Return layers `[in + 1, out]`: weights of variance 1/in, and biases of 0."""
  rng = np.random.default_rng((seed, 1))
  weights = [rng.normal(0, m**-0.5, (m, n)) for m, n in itertools.pairwise(sizes)]
  return [jnp.asarray(np.pad(w, ((0, 1), (0, 0))), jnp.float32) for w in weights]


def logits_of(params: Params, images: jax.Array) -> jax.Array:
  """Return the logits `[..., K]` of images `[..., 64]`: layers with tanh in between."""
  for layer in params[:-1]:
    images = jnp.tanh(images @ layer[:-1] + layer[-1])
  return images @ params[-1][:-1] + params[-1][-1]


def class_loss(params: Params, images: jax.Array, label: jax.Array) -> jax.Array:
  """Return the loss `[]` of one class on its images `[N, 64]`, with weight decay."""
  log_probabilities = jax.nn.log_softmax(logits_of(params, images))
  square = optax.tree_utils.tree_norm(params, squared=True)
  return -log_probabilities[:, label].mean() + WEIGHT_DECAY / 2 * square


def class_losses(params: Params, images: jax.Array) -> jax.Array:
  """Return the losses `[K]` on images `[K, N, 64]`."""
  return jax.vmap(class_loss, (None, 0, 0))(params, images, jnp.arange(NUM_CLASSES))


def class_gradients(params: Params, images: jax.Array) -> tuple[jax.Array, Params]:
  """Return the losses `[K]` and the gradients `[K, *param]` on images `[K, N, 64]`."""
  of_class = jax.vmap(jax.value_and_grad(class_loss), (None, 0, 0))
  return of_class(params, images, jnp.arange(NUM_CLASSES))


def class_accuracies(params: Params, images: jax.Array) -> np.ndarray:
  """Return the accuracies `[K]` on images `[K, N, 64]`."""
  predictions = np.argmax(logits_of(params, images), axis=-1)
  return (predictions == np.arange(NUM_CLASSES)[:, None]).mean(axis=1)


@functools.partial(jax.jit, static_argnames=("method", "budget"))
def train_with_adam(params, images, learning_rate, parameter, *, method, budget):
  """Take `budget` steps on images `[K, N, 64]`.

  Returns the parameters, the cost, and NaN instead of a gap.
  """
  schedule = optax.cosine_decay_schedule(learning_rate, budget)
  optimizer = optax.chain(DIRECTIONS[method](parameter), optax.adam(schedule))

  def take_step(carry, _):
    params, state = carry
    losses, gradients = class_gradients(params, images)
    updates, state = optimizer.update(gradients, state, params, losses=losses)
    return (optax.apply_updates(params, updates), state), None

  start = (params, optimizer.init(params))
  (params, _), _ = jax.lax.scan(take_step, start, length=budget)
  return params, budget, jnp.nan


@jax.jit
def train_with_minimax(params, images, budget):
  """Minimise on images `[K, N, 64]`; return the parameters, the cost and the gap."""
  optimizer = ddi_jax.minimax_lbfgs(NUM_CLASSES)
  losses_fn = functools.partial(class_losses, images=images)

  def cost_of(state):
    return state.updates + FORWARD_COST * state.evaluations

  def take_step(carry):
    params, state, _ = carry
    losses, gradients = class_gradients(params, images)
    updates, new_state = optimizer.update(
      gradients, state, params, losses=losses, losses_fn=losses_fn
    )
    new = optax.apply_updates(params, updates), new_state
    exceeds = cost_of(new_state) > budget
    gained = losses.max() - new_state.losses.max()
    converged = jnp.maximum(new_state.gap, gained) <= TOLERANCE * losses.max()
    stuck = ~state.found & ~new_state.found  # The second failure was with a new metric.
    kept = jax.tree.map(functools.partial(jnp.where, exceeds), (params, state), new)
    return *kept, exceeds | converged | stuck

  start = (params, optimizer.init(params), jnp.asarray(False))
  params, state, _ = jax.lax.while_loop(lambda carry: ~carry[2], take_step, start)
  return params, cost_of(state), state.gap


def run(net: str, method: str, setting: Setting, seed: int, budget: int) -> Row:
  """Train a net with a method, and return the row of the table of runs."""
  start, (images, test_images) = initial_params(NETS[net], seed), load_images(seed)
  if method == "minimax":
    trained = train_with_minimax(start, images, budget)
  else:
    trained = train_with_adam(start, images, *setting, method=method, budget=budget)
  params, cost, gap = trained
  test = class_accuracies(params, test_images)
  row: Row = {"net": net, "method": method, "seed": seed, "budget": budget}
  row |= {"learning_rate": setting[0], "parameter": setting[1], "cost": float(cost)}
  row |= {"train_loss": float(class_losses(params, images).max()), "gap": float(gap)}
  row["train_worst_class"] = float(class_accuracies(params, images).min())
  accuracies = {"test_worst_class": test.min(), "test_accuracy": test.mean()}
  return row | {name: float(value) for name, value in accuracies.items()}


def run_all(net: str, budget: int) -> Iterator[Row]:
  """Yield every method's rows: its sweep, then its best setting on the other seeds."""
  for method in (*DIRECTIONS, "minimax"):
    rates = LEARNING_RATES if method in DIRECTIONS else (None,)
    settings = itertools.product(rates, PARAMETERS.get(method, (None,)))
    swept = {s: run(net, method, s, SEEDS[0], budget) for s in settings}
    yield from swept.values()
    best = min(swept, key=lambda s: np.nan_to_num(swept[s]["train_loss"], nan=np.inf))
    yield from (run(net, method, best, seed, budget) for seed in SEEDS[1:])


def table(runs: pd.DataFrame) -> str:
  """Return a Markdown table of means and deviations over seeds, a line per method."""
  header = ["method", "learning rate", "parameter", *FIELDS.values(), "cost"]
  lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
  for method, rows in compared_runs(runs).groupby("method", sort=False):
    setting = rows[["learning_rate", "parameter"]].iloc[0]
    cells = [str(method), *("" if pd.isna(x) else f"{x:g}" for x in setting)]
    cells += [mean_and_deviation(rows[field]) for field in FIELDS]
    lines.append(f"| {' | '.join(cells)} | {rows['cost'].mean():.0f} |")
  return "\n".join(lines)


def main() -> None:
  """Run the command."""
  parser = argparse.ArgumentParser(description="See the docstring of this module.")
  parser.add_argument("--output", type=Path, default=Path("runs/experiments"))
  parser.add_argument("--steps", type=int, nargs="+", default=[50, 500], help="budgets")
  flags = parser.parse_args()
  provenance = sweep.describe_provenance()
  rows = (row for net in NETS for steps in flags.steps for row in run_all(net, steps))
  runs = pd.DataFrame(row | provenance for row in rows)
  program.write_tables({"runs": runs}, "full_batch", flags.output)
  for (net, steps), part in runs.groupby(["net", "budget"], sort=False):
    print(f"\n{net}, a budget of {steps} gradient sets\n\n{table(part)}")


if __name__ == "__main__":
  main()
