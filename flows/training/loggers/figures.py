"""What a single number cannot say: pictures, histograms and files, for every logger that can show them.

Numbers go through ``LightningModule.log``, which hands them to all loggers. For the rest each logger has methods of its
own or none (a CSV file); the functions here hide that from the caller. To add a logger, register what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import Tensor

from flows.pictures import to_array
from flows.training.loggers.wandb import WandbLogger


@singledispatch
def log_images(logger: Logger, name: str, images: Mapping[str, Tensor], step: int) -> None:
    """Show uint8 images ``(1 or 3, H, W)``, each under its caption.

    Args:
        logger: one that shows no images is left alone.
        name: of all of them together.
        images: by their captions.
        step: the optimiser step at which they were made.
    """


@log_images.register
def _(logger: TensorBoardLogger, name: str, images: Mapping[str, Tensor], step: int) -> None:
    for caption, image in images.items():
        logger.experiment.add_image(f"{name}/{caption}", image, step)


@log_images.register
def _(logger: WandbLogger, name: str, images: Mapping[str, Tensor], step: int) -> None:
    logger.log_images(name, {caption: to_array(image) for caption, image in images.items()}, step)


@singledispatch
def log_histogram(logger: Logger, name: str, values: Tensor, edges: Tensor, step: int) -> None:
    """Show how often values fall between two neighbouring edges.

    Args:
        logger: one that shows no histograms is left alone.
        name: of the histogram.
        values: of any shape; what lies outside of the edges is not counted.
        edges: ascending, one more than there are bins.
        step: the optimiser step at which the values were seen.
    """


@log_histogram.register
def _(logger: TensorBoardLogger, name: str, values: Tensor, edges: Tensor, step: int) -> None:
    values = values.cpu()
    counted = values[(edges[0] <= values) & (values <= edges[-1])]  # no NaN either
    if len(counted):  # TensorBoard knows no empty histograms
        logger.experiment.add_histogram(name, counted, step, bins=edges.numpy())


@log_histogram.register
def _(logger: WandbLogger, name: str, values: Tensor, edges: Tensor, step: int) -> None:
    logger.log_histogram(name, np.histogram(values.cpu(), edges.numpy()), step)


@singledispatch
def log_checkpoint(logger: Logger, path: Path, metadata: Mapping[str, float]) -> None:
    """Keep a checkpoint beside the figures.

    Args:
        logger: one that keeps no files is left alone.
        path: of the checkpoint, which stays as it is from now on.
        metadata: what the checkpoint has achieved.
    """


@log_checkpoint.register
def _(logger: WandbLogger, path: Path, metadata: Mapping[str, float]) -> None:
    logger.log_checkpoint(path, metadata)
