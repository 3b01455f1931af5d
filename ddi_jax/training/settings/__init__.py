"""The settings of a run, and the pieces that they name."""
