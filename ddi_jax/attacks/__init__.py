"""Attacks: functions `(key, objective, inputs) -> adversarial inputs`."""

from ddi_jax.attacks.pgd import Attack, Objective, pgd

__all__ = ["Attack", "Objective", "pgd"]
