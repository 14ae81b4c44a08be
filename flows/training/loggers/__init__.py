"""Where the figures of a training go: a file for each logger that is ours."""

from flows.training.loggers.csv import ResumableCSVLogger
from flows.training.loggers.wandb import WandbLogger

__all__ = ["ResumableCSVLogger", "WandbLogger"]
