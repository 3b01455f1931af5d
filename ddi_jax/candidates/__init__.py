"""Sources of candidates: functions (key, logits_fn, inputs, labels) -> `[K, B, ...]`.

They mix freely: `combine`.  A new one is one new file, or a function of one's own.
"""

from ddi_jax.candidates.one_step import r_fgsm
from ddi_jax.candidates.repeated_attacks import (
  restart_candidates,
  restarts,
  worst_candidate,
)
from ddi_jax.candidates.rival_classes import targeted
from ddi_jax.candidates.source import Source, combine
from ddi_jax.candidates.steepest_union import msd
from ddi_jax.candidates.transformations import spatial
from ddi_jax.candidates.warm_starts import warm_restarts

__all__ = [
  "Source",
  "combine",
  "msd",
  "r_fgsm",
  "restart_candidates",
  "restarts",
  "spatial",
  "targeted",
  "warm_restarts",
  "worst_candidate",
]
