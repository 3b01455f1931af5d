"""Adversarial attacks on an objective or on a classifier.

An `Attack`, `(key, objective, inputs) -> adversarial inputs`, increases any objective.
A `ClassifierAttack`, `(key, logits_fn, inputs, labels) -> adversarial inputs`, looks
for misclassified points.
"""

from ddi_jax.attacks.auto_pgd import apgd
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn, classifier_attack
from ddi_jax.attacks.ensemble import autoattack, standard_attacks
from ddi_jax.attacks.fast_boundary import fab
from ddi_jax.attacks.model_checks import check_model
from ddi_jax.attacks.multi_targeted import multi_targeted_pgd
from ddi_jax.attacks.projected_gradient import Attack, Objective, pgd
from ddi_jax.attacks.random_squares import square
from ddi_jax.attacks.stages import AutoAttackResult, Progress, ResumeError

__all__ = [
  "Attack",
  "AutoAttackResult",
  "ClassifierAttack",
  "LogitsFn",
  "Objective",
  "Progress",
  "ResumeError",
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
