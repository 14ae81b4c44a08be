"""Runs: what a run folder holds, whose it is, its checkpoints, and how a run is resumed."""
