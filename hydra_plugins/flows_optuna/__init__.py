"""A Hydra sweeper on Optuna, behind ``hparams_search=optuna``."""
