"""Minimax on random batches: the effect of noise on a quasi-Newton metric.

python benchmarks/minimax_batches.py

The problem is softmax regression on noisy digits (benchmarks/minimax_tasks.py), with
the greatest of ten classes' losses.  Every step draws a batch with equally many images
of each class.  `minimax_lbfgs` searches for its step on that batch.  Adam follows the
proximal-bundle direction (t = 1) of the same batch, with the best of five learning
rates.  The script prints the greatest loss over all images after 300 steps, as mean and
standard deviation over three seeds.  The least possible value is that of `minimize_max`
on all images.
"""

import jax
import jax.numpy as jnp
from machine import describe_machine
from minimax_tasks import class_losses, noisy_digits
import numpy as np
import optax
from progress import progress

import ddi_jax

STEPS = 300
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PER_CLASS = (5, 20, 80, None)  # None: all images in every step.
SEEDS = (0, 1, 2)


def run(
  optimizer: optax.GradientTransformationExtraArgs, per_class: int | None, seed: int
) -> float:
  """The greatest loss over all images at the end."""
  images, labels = noisy_digits(noise=0.6)
  rng = np.random.default_rng(seed)

  def losses_fn(params: jax.Array, chosen: jax.Array) -> jax.Array:
    return class_losses(
      params, (), jnp.asarray(images)[chosen], jnp.asarray(labels)[chosen]
    )

  @jax.jit
  def step(params, state, chosen):
    def of_batch(params):
      return losses_fn(params, chosen)

    updates, state = optimizer.update(
      jax.jacrev(of_batch)(params),
      state,
      params,
      losses=of_batch(params),
      losses_fn=of_batch,
    )
    return optax.apply_updates(params, updates), state

  params = jnp.zeros(650)
  state = optimizer.init(params)
  members = [np.flatnonzero(labels == label) for label in range(10)]
  everything = np.arange(len(labels))
  for _ in range(STEPS):
    chosen = everything
    if per_class is not None:
      chosen = np.concatenate([rng.choice(part, per_class) for part in members])
    params, state = step(params, state, chosen)
  return float(losses_fn(params, everything).max())


def describe(values: list[float]) -> str:
  return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def main() -> None:
  print(describe_machine("jax", "optax", "scikit-learn"))
  images, labels = noisy_digits(noise=0.6)
  best = ddi_jax.minimize_max(
    lambda params: class_losses(params, (), jnp.asarray(images), labels),
    jnp.zeros(650),
  )
  print(f"\nThe least possible: {best.value:.3f}.\n")
  print("| images per class | minimax_lbfgs | DDi bundle, Adam | its rate |")
  print("|---|---|---|---|")
  for per_class in progress(PER_CLASS):
    metric = [run(ddi_jax.minimax_lbfgs(10), per_class, seed) for seed in SEEDS]
    adam = {
      rate: [
        run(
          optax.chain(
            ddi_jax.danskin_direction(normalize=False, bundle_step=1.0),
            optax.adam(optax.cosine_decay_schedule(rate, STEPS)),
          ),
          per_class,
          seed,
        )
        for seed in SEEDS
      ]
      for rate in RATES
    }
    rate = min(adam, key=lambda rate: np.mean(adam[rate]))
    print(
      f"| {per_class or 'all'} | {describe(metric)} | {describe(adam[rate])} "
      f"| {rate} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
