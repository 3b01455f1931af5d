"""The training step and the validation: pure functions of a state and a batch."""
