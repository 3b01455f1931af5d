"""Losses and parameter gradients at each candidate, and their inner products."""
