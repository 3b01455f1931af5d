"""Loops, precision and thresholds; independent of the rest of the library."""
