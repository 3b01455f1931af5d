"""The experiments by name, each with several budgets."""

from collections.abc import Sequence

import ml_collections


def start(name: str, budget: str, budgets: Sequence[str]) -> ml_collections.ConfigDict:
  """A config that has only the experiment's name, which includes the budget.

  Raises:
    ValueError: for a budget that is not one of `budgets`.
  """
  if budget not in budgets:
    raise ValueError(f"the budget must be one of {', '.join(budgets)}; got {budget!r}.")
  config = ml_collections.ConfigDict()
  config.name = name if budget == "small" else f"{name}_{budget}"
  return config
