"""Sources of candidates: functions (key, logits_fn, inputs, labels) -> `[K, B, ...]`.

They mix freely: `combine`.  A new one is one new file, or a function of one's own.
"""

from ddi_jax.sources.base import Source, combine
from ddi_jax.sources.msd import msd
from ddi_jax.sources.one_step import n_fgsm, r_fgsm
from ddi_jax.sources.output_diversified import output_diversified
from ddi_jax.sources.restarts import restarts, spread_restarts
from ddi_jax.sources.spatial import spatial
from ddi_jax.sources.targeted import targeted
from ddi_jax.sources.trajectory import trajectory
from ddi_jax.sources.warm import warm_restarts

__all__ = [
  "Source",
  "combine",
  "msd",
  "n_fgsm",
  "output_diversified",
  "r_fgsm",
  "restarts",
  "spatial",
  "spread_restarts",
  "targeted",
  "trajectory",
  "warm_restarts",
]
