"""The audit of a finished run: AutoAttack, calibrated PGD, accuracy by radius."""
