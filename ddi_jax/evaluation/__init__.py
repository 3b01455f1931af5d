"""How robust a classifier is: accuracies with intervals, curves, calibration."""
