"""Where the figures of a training go, and how: a file for each idea."""

from flows.loggers.figures import log_checkpoint, log_histogram, log_images
from flows.loggers.weights_and_biases import WandbLogger

__all__ = ["WandbLogger", "log_checkpoint", "log_histogram", "log_images"]
