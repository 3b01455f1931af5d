"""Attacks in two dimensions, against all points of a fine grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks, losses

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
BALLS = {"linf": ddi_jax.linf(0.06), "l2": ddi_jax.l2(0.08), "l1": ddi_jax.l1(0.1)}
COUNT, SIDE = 300, 301
PARAMS = [
  jax.random.normal(jax.random.key(1), (2, 24)) * 6,
  jax.random.normal(jax.random.key(2), (1, 24)) * 3,
  jax.random.normal(jax.random.key(3), (24, 4)),
]


def logits_fn(inputs):
  """A wavy network: its regions are about as wide as the balls."""
  first, shift, last = PARAMS
  return jnp.sin(inputs @ first + shift) @ last


INPUTS = jax.random.uniform(jax.random.key(4), (COUNT, 2))
LABELS = jnp.argmax(logits_fn(INPUTS), axis=1)


@functools.cache
def on_the_grid(norm):
  """Search the grid's points in ball and box; three arrays `[N]`.

  They are whether some point is misclassified, the greatest loss, and the least
  distance to a misclassified point (inf if there is none).
  """
  ball = BALLS[norm]
  steps = jnp.linspace(-ball.epsilon, ball.epsilon, SIDE)
  moves = jnp.stack(jnp.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
  moves = moves[ball.size(moves) <= ball.epsilon]
  sizes = ball.size(moves)

  def search(example):
    inputs, label = example
    points = inputs[None] + moves
    inside = jnp.all((points >= 0) & (points <= 1), axis=1)
    logits = logits_fn(points)
    labels = jnp.full(len(points), label)
    wrong = inside & (jnp.argmax(logits, axis=1) != label)
    values = losses.cross_entropy(logits, labels)
    return (
      jnp.any(wrong),
      jnp.max(jnp.where(inside, values, -jnp.inf)),
      jnp.min(jnp.where(wrong, sizes, jnp.inf)),
    )

  # So many points are worth XLA's optimisations.
  options = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
  }
  search_all = jax.jit(functools.partial(jax.lax.map, search), compiler_options=options)
  return search_all((INPUTS, LABELS))


def check_allowed(points, ball):
  assert np.all(ball.size(points - INPUTS) <= ball.epsilon * (1 + 1e-5))
  assert np.all((points >= 0) & (points <= 1))


@pytest.mark.parametrize("norm", BALLS)
def test_autoattack_breaks_what_can_be_broken(norm):
  ball = BALLS[norm]
  breakable, _, _ = on_the_grid(norm)
  evaluate = ddi_jax.autoattack(
    ball,
    {**attacks.standard_attacks(ball), "square": attacks.square(ball, queries=300)},
  )
  result = evaluate(KEY, logits_fn, INPUTS, LABELS)
  check_allowed(result.adversarial, ball)
  broken = ~result.robust
  wrong = np.argmax(logits_fn(result.adversarial), axis=1) != LABELS
  np.testing.assert_array_equal(broken, wrong)
  assert 0.2 < np.mean(breakable) < 0.8
  # What only a corner between the grid's points breaks is right too.
  print(
    norm,
    "breakable",
    np.sum(breakable),
    "missed",
    np.sum(breakable & ~broken),
    "beyond the grid",
    np.sum(broken & ~breakable),
  )
  assert np.sum(breakable & ~broken) == 0


@pytest.mark.parametrize("norm", BALLS)
def test_pgd_finds_the_greatest_loss(norm):
  """From 20 starts, on all but a few of the examples, and never more."""
  ball = BALLS[norm]
  _, greatest, _ = on_the_grid(norm)
  attack = ddi_jax.pgd(ball, steps=40, step_size=ball.epsilon / 8, iterate="best")
  points = ddi_jax.restart_candidates(
    attack, lambda x, y: losses.cross_entropy(logits_fn(x), y), INPUTS, LABELS, KEY, 20
  )
  values = jax.vmap(lambda x: losses.cross_entropy(logits_fn(x), LABELS))(points)
  worst = ddi_jax.worst_candidate(points, values)
  check_allowed(worst, ball)
  short = greatest - values.max(axis=0)
  print(norm, "short by", np.quantile(short, [0, 0.5, 0.9, 0.99, 1]))
  assert np.mean(short < 0.01) > 0.98
  assert short.min() > -0.1  # As much as the loss changes between the grid's points.


@pytest.mark.parametrize("norm", BALLS)
def test_fab_finds_the_distance(norm):
  """The least distance to a wrong class, to the grid's spacing."""
  ball = BALLS[norm]
  breakable, _, least = on_the_grid(norm)
  attack = attacks.fab(ball, targets=3, restarts=4, steps=60)
  points = jax.jit(attack, static_argnums=1)(KEY, logits_fn, INPUTS, LABELS)
  check_allowed(points, ball)
  found = np.asarray(ball.size(points - INPUTS))
  compared = np.asarray(breakable & (found > 0))
  excess = (found - least)[compared] / ball.epsilon
  missed = np.sum(breakable) - len(excess)
  print(norm, "missed", missed, "excess", np.quantile(excess, [0, 0.5, 0.9, 0.95, 1]))
  assert missed <= 0.05 * len(excess)
  assert np.mean(excess < 0.02) > 0.9
  assert excess.min() > -0.05  # Narrow regions lie between the grid's points.
