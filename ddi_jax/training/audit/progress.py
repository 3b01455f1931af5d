"""The progress bar of an evaluation."""

from collections.abc import Mapping
import sys

from tqdm import auto as tqdm

from ddi_jax.attacks import AutoAttackResult, Progress

# Approximate number of forward passes per example (a gradient counts as three).
_COSTS = {
  "apgd-ce": 300,
  "apgd-dlr": 300,
  "apgd-t": 2700,
  "fab": 5000,
  "fab-t": 3600,
  "square": 5000,
}


class ProgressBar:
  """A progress bar over all attacks, weighted by their costs.

  Its remaining time is an estimate.

  Args:
    sizes: number of examples of each result; the key is the names of its attacks.
    other_costs: costs of the attacks that are not AutoAttack's, in forward passes.
    results: the results so far, with the same keys; the caller keeps them up to date.
  """

  def __init__(
    self,
    sizes: Mapping[tuple[str, ...], int],
    other_costs: Mapping[str, int],
    results: Mapping[tuple[str, ...], AutoAttackResult],
  ):
    self._sizes, self._results = sizes, results
    self._costs = _COSTS | dict(other_costs)
    done = sum(
      self._cost(name) * int((result.faced > stage).sum())
      for names, result in results.items()
      for stage, name in enumerate(names)
    )
    self._bar = tqdm.tqdm(
      total=done + self._left(),
      initial=done,
      bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
      smoothing=0.1,
      dynamic_ncols=True,
      mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )

  def show(self, progress: Progress) -> None:
    """Update the bar after a batch."""
    step = self._cost(progress.attack) * len(progress.indices)
    self._bar.total = self._bar.n + step + self._left()
    self._bar.set_postfix_str(
      f"{progress.attack} {progress.done}/{progress.total}, robust "
      f"{progress.result.robust_accuracy:.3f}",
      refresh=False,
    )
    self._bar.update(step)

  def __enter__(self) -> "ProgressBar":
    return self

  def __exit__(self, *exception: object) -> None:
    self._bar.close()

  def _cost(self, name: str) -> int:
    return self._costs[name.split(" at ", maxsplit=1)[0]]

  def _left(self) -> int:
    """The cost of the remaining work if no further example is broken."""
    left = 0
    for names, size in self._sizes.items():
      for stage, name in enumerate(names):
        pending = size
        if names in self._results:
          result = self._results[names]
          pending = int((result.robust & (result.faced <= stage)).sum())
        left += self._cost(name) * pending
    return left
