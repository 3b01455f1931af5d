"""Experiments: sweeps of runs, their tables and their figures."""
