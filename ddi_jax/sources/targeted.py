"""One candidate per rival class."""

import jax.numpy as jnp

from ddi_jax import loops
from ddi_jax.attacks import Attack
from ddi_jax.attacks.classifier import targets_by_rank
from ddi_jax.sources.base import Source, check_count


def targeted(
  attack: Attack,
  count: int,
  *,
  loop: str = "auto",
  at_a_time: int | None = None,
) -> Source:
  """An attack towards each of the K likeliest wrong classes.

  It increases that class's logit minus the label's, as multi-targeted PGD (Gowal et
  al., 2019) and BETA (Robey et al., 2024) do.

  Args:
    attack: see `ddi_jax.attacks`; all runs use the same key, and so the same start.
    count: K >= 1, at most C - 1.
    loop: arrangement of the K runs.
    at_a_time: see `ddi_jax.restart_candidates`.

  Returns:
    A `Source` of K candidates, the likeliest class's first.

  Raises:
    ValueError: when it runs, if there are fewer than K wrong classes.
  """
  check_count("count", count)
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap"))

  def source(key, logits_fn, inputs, labels):
    clean = logits_fn(inputs)
    if count >= clean.shape[1]:
      raise ValueError(
        f"count must be at most {clean.shape[1] - 1}, the wrong classes; got {count}."
      )
    rows = jnp.arange(len(inputs))

    def run(rank):
      target = targets_by_rank(clean, labels, rank)

      def difference(points):
        logits = logits_fn(points)
        return logits[rows, target] - logits[rows, labels]

      return attack(key, difference, inputs)

    return loops.map_resolved(run, jnp.arange(count), loop, at_a_time)

  return source
