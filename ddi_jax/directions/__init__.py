"""From K gradients to one direction: weights on the simplex, optax transformations."""
