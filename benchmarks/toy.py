"""Draw the figure in the README: the paper's two-dimensional toy problem.

python benchmarks/toy.py

The problem is g(x, y) = y |x + e_1|^2 + (1 - y) |x - e_1|^2 - y (1 - y) with y in
[0, 1], from x = (1, 0).  A step makes 10 ascent steps of size 1 on y from each of K =
10 uniform starts, then one of length 0.1 along the method's direction (Latorre et al.,
2023, section 3).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
import optax

import ddi_jax

STEPS = 20
METHODS = {
  "one maximiser (PGD)": ddi_jax.first_restart_direction,
  "average of the K": ddi_jax.average_direction,
  "Danskin's direction": ddi_jax.danskin_direction,
}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "counterexample.png"


def loss_fn(x, y, labels):
  """The toy loss, `[B]`, at the inner variables y `[B, 1]`."""
  del labels
  y = y[:, 0]
  above = x[0] ** 2 + (x[1] + 1) ** 2
  below = x[0] ** 2 + (x[1] - 1) ** 2
  return y * above + (1 - y) * below - y * (1 - y)


def robust_loss(x):
  """The maximum over y, which is at y = 0 or y = 1."""
  return np.maximum(x[0] ** 2 + (x[1] + 1) ** 2, x[0] ** 2 + (x[1] - 1) ** 2)


def trajectory(direction):
  """The points visited with a direction, `[STEPS + 1, 2]`."""
  attack = ddi_jax.pgd(
    ddi_jax.linf(0.5), steps=10, step_size=1.0, ascent=lambda gradients, *_: gradients
  )
  gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=10)
  optimizer = optax.chain(direction(normalize=True), optax.sgd(0.1))

  @jax.jit
  def step(x, state, key):
    gradients, _ = gradients_fn(x, jnp.full((1, 1), 0.5), None, key)
    updates, state = optimizer.update(gradients, state, x)
    return optax.apply_updates(x, updates), state

  x = jnp.array([1.0, 0.0])
  state = optimizer.init(x)
  points = [x]
  for index in range(STEPS):
    x, state = step(x, state, jax.random.fold_in(jax.random.key(0), index))
    points.append(x)
  return np.array(points)


def main():
  """Draw both panels."""
  figure = Figure(figsize=(9, 3.4), layout="constrained")
  FigureCanvasAgg(figure)
  plane, descent = figure.subplots(1, 2, width_ratios=(1.2, 1))
  grid = np.stack(
    np.meshgrid(np.linspace(-0.15, 1.1, 200), np.linspace(-0.4, 0.4, 200))
  )
  levels = np.linspace(1, 2.8, 19)
  plane.contour(*grid, robust_loss(grid), levels, colors="0.8", linewidths=0.7)
  for (name, direction), marker in zip(METHODS.items(), "^sd", strict=True):
    points = trajectory(direction)
    values = robust_loss(points.T)
    plane.plot(*points.T, marker=marker, markersize=3, linewidth=1, label=name)
    descent.plot(values, marker=marker, markersize=3, linewidth=1, label=name)
    print(f"{name}: {values[0]:.3f} -> {values[1]:.3f} -> ... -> {values[10]:.3f}")
  plane.set(xlabel="$x_0$", ylabel="$x_1$", title="trajectory from (1, 0)", aspect=1)
  descent.set(xlabel="step", ylabel="robust loss", title="the worst of the two losses")
  descent.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  descent.grid(alpha=0.3)
  descent.legend()
  PICTURE.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(PICTURE, dpi=110)
  print(f"Saved {PICTURE}")


if __name__ == "__main__":
  main()
