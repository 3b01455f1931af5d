"""The experiments by name, each with several budgets."""
