"""One step that lowers a maximum: its direction in a metric, and its length."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.directions.min_norm import solve
from ddi_jax.gradients.gram import ShiftedGram
from ddi_jax.minimax.metric import Metric, apply_metric
from ddi_jax.numerics.precision import matmul

LossesOfStep = Callable[[jax.Array], jax.Array]  # step [D] -> losses [K]
_SUFFICIENT = 1e-3  # A step must achieve this fraction of the model's decrease.
_GROWTH = 4.0
_MOST_GROWTH = 1e8


class Model(NamedTuple):
  """The model max_k (losses_k + <gradients_k, step>) at one point.

  Attributes:
    losses: `[K]`.
    gradients: `[K, D]`.
    metric_gradients: H gradients, `[K, D]`, where H is the metric.
    inner: gradients H gradients', `[K, K]`, relative to the gradient of greatest loss.
  """

  losses: jax.Array
  gradients: jax.Array
  metric_gradients: jax.Array
  inner: ShiftedGram


class Proposal(NamedTuple):
  """The minimiser of the model plus half the squared length of the step.

  Attributes:
    step: `[D]`.
    weights: `[K]`, the multipliers of the losses.
    decrease: the decrease of the model, without the squared length, >= 0.
    gap: the decrease of the model with the squared length, >= 0: what can still be
      gained according to the model.
    curved: whether most of the decrease is limited by the squared length alone.
  """

  step: jax.Array
  weights: jax.Array
  decrease: jax.Array
  gap: jax.Array
  curved: jax.Array


class Search(NamedTuple):
  """The best step found so far, and what to try next.

  Attributes:
    first: the proposal of the first trial: the model's minimiser in the metric itself.
    proposal: the best proposal; `first` if no step was found.
    factor: factor of the metric for `proposal`.
    losses: `[K]`, the losses after the step of `proposal`.
    found: whether a step was found.
    trials: number of times the losses were computed.
    next_factor: factor of the metric in the next trial.
    corrects: whether the next trial corrects the model by the losses of the last trial.
    offsets: `[K]`, losses of the model in the next trial.
    decrease: decrease of the model without a correction, in the last trial.
    done: whether the search has ended.
  """

  first: Proposal
  proposal: Proposal
  factor: jax.Array
  losses: jax.Array
  found: jax.Array
  trials: jax.Array
  next_factor: jax.Array
  corrects: jax.Array
  offsets: jax.Array
  decrease: jax.Array
  done: jax.Array


def linear_model(losses: jax.Array, gradients: jax.Array, metric: Metric) -> Model:
  """The linear model of the losses, in a metric."""
  reference = gradients[jnp.argmax(losses)]
  differences = gradients - reference[None]
  images = apply_metric(metric, jnp.concatenate([differences, reference[None]]))
  products = matmul(differences, images[:-1].T)
  inner = ShiftedGram(
    differences=(products + products.T) / 2,
    offsets=matmul(differences, images[-1]),
    squared_norm=matmul(reference, images[-1]),
  )
  return Model(losses, gradients, images[:-1] + images[-1:], inner)


def _propose(model: Model, factor: jax.Array, offsets: jax.Array) -> Proposal:
  """Minimise the model with losses `offsets`, in the metric `factor` times H."""
  inner = ShiftedGram(*(factor * part for part in model.inner))
  slacks = jnp.max(offsets) - offsets
  solution = solve(inner, slacks)
  step = -factor * matmul(solution.weights, model.metric_gradients)
  value = jnp.max(offsets + matmul(model.gradients, step))
  mean_slack = matmul(solution.weights, slacks)
  return Proposal(
    step,
    solution.weights,
    decrease=jnp.maximum(jnp.max(offsets) - value, 0),
    gap=solution.squared_norm / 2 + mean_slack,
    curved=solution.squared_norm > mean_slack,
  )


def find_step(
  model: Model,
  losses_of_step: LossesOfStep,
  reference: jax.Array,
  *,
  max_trials: int,
) -> Search:
  """Find a step that ends below a reference by a fraction of the model's decrease.

  The reference is the greatest loss now or a few steps before: a step that rises a
  little now often saves many later, if the kinks are curved (Grippo et al., 1986; for a
  maximum Zhou and Tits, 1993).

  The first trial is the model's minimiser in the metric.  If it lowers the loss by all
  that the linear model predicts, no curvature is seen, and the metric is stretched as
  long as that helps.  If a trial fails, the next one corrects the model's losses by the
  losses of the failed trial, which keeps steps long at a curved ridge (Maratos, 1978).
  If that fails too, the metric is shrunk: the step turns towards the gradient of the
  greatest loss, so that a later trial descends.

  Args:
    model: the model at the current point.
    losses_of_step: step -> the losses after it.
    reference: a value that is at least the greatest of the model's losses.
    max_trials: give up after this many trials.

  Returns:
    The search when it has ended.
  """
  value = jnp.max(model.losses)
  # A predicted gain of this size is lost in the rounding of the losses.
  rounding = jnp.finfo(value.dtype).eps * jnp.abs(value)

  def trial(state: Search) -> Search:
    is_first, is_correction = state.trials == 0, state.corrects
    proposal = _propose(model, state.next_factor, state.offsets)
    losses = losses_of_step(proposal.step)
    reached = jnp.where(jnp.all(jnp.isfinite(losses)), jnp.max(losses), jnp.inf)
    # A correction is compared with the decrease of the model without it.
    decrease = jnp.where(is_correction, state.decrease, proposal.decrease)
    gained = value - reached
    below = reference - reached
    good = (below > 0) & (below >= _SUFFICIENT * decrease)
    better = good & (~state.found | (reached < jnp.max(state.losses)))
    # Stretch if the model is right, as far as the rounding of the losses shows.
    stretch = gained >= 0.9 * decrease - 4 * rounding
    stretch &= ~is_correction & proposal.curved & (state.next_factor >= 1)
    stretch &= better | is_first
    growth = jnp.clip(16 * rounding / decrease, _GROWTH, _MOST_GROWTH)
    correct = ~is_correction & ~good & ~stretch & ~state.found & jnp.isfinite(reached)
    # The decrease along the step, fitted by a parabola, is greatest at this fraction.
    fraction = decrease / (2 * jnp.maximum(decrease - gained, decrease / 2))
    fraction = jnp.where(jnp.isfinite(reached), jnp.clip(fraction, 0.1, 0.5), 0.1)
    first = jax.tree.map(
      lambda new, old: jnp.where(is_first, new, old), proposal, state.first
    )
    kept = jax.tree.map(
      lambda new, old: jnp.where(better | is_first, new, old),
      (proposal, state.next_factor, losses),
      (state.proposal, state.factor, state.losses),
    )
    shrunk = jnp.where(correct, 1, fraction) * state.next_factor
    trials = state.trials + 1
    hopeless = ~correct & ~stretch & (decrease <= 16 * rounding)
    return Search(
      first=first,
      proposal=kept[0],
      factor=kept[1],
      losses=kept[2],
      found=state.found | better,
      trials=trials,
      next_factor=jnp.where(stretch, growth * state.next_factor, shrunk),
      corrects=correct,
      offsets=jnp.where(
        correct, losses - matmul(model.gradients, proposal.step), model.losses
      ),
      decrease=decrease,
      done=((state.found | better) & ~stretch) | hopeless | (trials >= max_trials),
    )

  # The first trial replaces the placeholder.  A proposal is computed only inside the
  # loop, because it takes most of the time to compile.
  zero, one = jnp.zeros_like(value), jnp.ones_like(value)
  placeholder = Proposal(
    step=jnp.zeros_like(model.gradients[0]),
    weights=jnp.zeros_like(model.losses),
    decrease=zero,
    gap=zero,
    curved=jnp.zeros((), bool),
  )
  start = Search(
    first=placeholder,
    proposal=placeholder,
    factor=one,
    losses=model.losses,
    found=jnp.zeros((), bool),
    trials=jnp.zeros((), int),
    next_factor=one,
    corrects=jnp.zeros((), bool),
    offsets=model.losses,
    decrease=zero,
    done=jnp.zeros((), bool),
  )
  return jax.lax.while_loop(lambda state: ~state.done, trial, start)
