"""Where the figures of a training go: a file for each logger that is ours, and what all loggers can show."""

from flows.training.loggers.csv import ResumableCSVLogger
from flows.training.loggers.figures import log_checkpoint, log_histogram, log_images
from flows.training.loggers.wandb import WandbLogger

__all__ = ["ResumableCSVLogger", "WandbLogger", "log_checkpoint", "log_histogram", "log_images"]
