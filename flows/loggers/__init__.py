"""Where the figures of a training go, such that none of these places ends it: a file for each idea."""

from flows.loggers.figures import log_checkpoint, log_histogram, log_images
from flows.loggers.steady import SteadyCSVLogger, SteadyTensorBoardLogger
from flows.loggers.weights_and_biases import WandbLogger

__all__ = ["SteadyCSVLogger", "SteadyTensorBoardLogger", "WandbLogger", "log_checkpoint", "log_histogram", "log_images"]
