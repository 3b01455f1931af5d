"""Attacks.

`Attack`, `(key, objective, inputs) -> adversarial inputs`, increases any objective;
`ClassifierAttack`, `(key, logits_fn, inputs, labels) -> adversarial inputs`, looks for
misclassified points.
"""

from ddi_jax.attacks.apgd import apgd
from ddi_jax.attacks.autoattack import autoattack, standard_attacks
from ddi_jax.attacks.checks import check_model
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn, classifier_attack
from ddi_jax.attacks.fab import fab
from ddi_jax.attacks.multi_targeted import multi_targeted_pgd
from ddi_jax.attacks.pgd import Attack, Objective, pgd
from ddi_jax.attacks.square import square
from ddi_jax.attacks.stages import AutoAttackResult, Progress

__all__ = [
  "Attack",
  "AutoAttackResult",
  "ClassifierAttack",
  "LogitsFn",
  "Objective",
  "Progress",
  "apgd",
  "autoattack",
  "check_model",
  "classifier_attack",
  "fab",
  "multi_targeted_pgd",
  "pgd",
  "square",
  "standard_attacks",
]
