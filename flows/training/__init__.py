"""Training: the Lightning module, its callbacks and loggers, a run from beginning to end."""
