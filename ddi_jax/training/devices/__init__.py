"""Devices, processes, memory and compilation of a run."""
