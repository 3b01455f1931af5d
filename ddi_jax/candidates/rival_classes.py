"""One candidate per rival class."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.attacks import Attack
from ddi_jax.attacks.classifier import LogitsFn, check_call, targets_by_rank
from ddi_jax.candidates.source import Source
from ddi_jax.checks import check_positive_int
from ddi_jax.numerics import loops


def targeted(
  attack: Attack,
  count: int,
  *,
  at_a_time: int | None = None,
) -> Source:
  """Make candidates by attacks towards each of the K likeliest wrong classes.

  Each attack increases its class's logit minus the label's, as multi-targeted PGD
  (Gowal et al., 2019) and BETA (Robey et al., 2024) do.

  Args:
    attack: see `ddi_jax.attacks`; all runs use the same key, and so the same start.
    count: K, the number of target classes, from 1 to C - 1.
    at_a_time: see `ddi_jax.restart_candidates`.

  Returns:
    A `Source` of K candidates, the likeliest class's first.

  Raises:
    ValueError: when it runs, if there are fewer than K wrong classes.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> from ddi_jax import candidates
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
    >>> source = candidates.targeted(attack, 2)
    >>> inputs, labels = jnp.full((4, 3), 0.5), jnp.zeros(4, int)
    >>> source(jax.random.key(0), lambda x: x @ jnp.eye(3), inputs, labels).shape
    (2, 4, 3)
  """
  check_positive_int("count", count)
  check_positive_int("at_a_time", at_a_time, optional=True)

  def source(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    clean = check_call(logits_fn, inputs, labels, None)
    if count >= clean.shape[1]:
      raise ValueError(
        f"count must be at most {clean.shape[1] - 1}, the wrong classes; got {count}."
      )
    rows = jnp.arange(len(inputs))

    def run(rank: Any) -> jax.Array:
      target = targets_by_rank(clean, labels, rank)

      def difference(points: jax.Array) -> jax.Array:
        logits = logits_fn(points)
        return logits[rows, target] - logits[rows, labels]

      return attack(key, difference, inputs)

    return loops.map_leading(run, jnp.arange(count), at_a_time)

  return source
