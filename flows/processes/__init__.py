"""Processes: how a program starts, which signals end it, what it asks of SLURM, and several that train together."""
