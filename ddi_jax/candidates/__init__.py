"""Sources of candidates: (key, logits_fn, inputs, labels) -> `[K, B, ...]`.

`combine` joins several sources into one.  Any function of this form is a source; a new
source of this folder is one new file.
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
