"""Images for the programs that work from a checkpoint: the user's own, or the held-out ones of the run's data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flows.checkpoint import read_checkpoint
from flows.errors import InputError
from flows.instantiation import build_trusted
from flows.pictures import find_pictures, read_picture

if TYPE_CHECKING:
    from datamodules import ImageDataModule


def held_out(checkpoint: Path) -> ImageDataModule:
    """The data set that a checkpoint was trained on, ready for use.

    Raises:
        InputError: the checkpoint names a class outside of this project.
    """
    # Lightning comes along with these: seconds that sampling alone need not wait.
    from datamodules import Augmentation, ImageDataModule

    config = read_checkpoint(checkpoint)["config"]
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise InputError(f"{checkpoint} does not say which data it was trained on: give images=FOLDER")
    data: ImageDataModule = build_trusted(
        config["data"], allowed=(ImageDataModule, Augmentation), packages=("datamodules",)
    )
    data.prepare_data()
    data.setup("test")
    return data


def held_out_images(checkpoint: Path, num_images: int) -> Tensor:
    """Some test images, spread evenly over the split."""
    test = held_out(checkpoint).test
    num_images = min(num_images, len(test))
    return test.gather([index * len(test) // num_images for index in range(num_images)])


def user_images(folder: Path, shape: tuple[int, int, int]) -> tuple[list[Path], Tensor]:
    """All pictures of a folder, checked and read: their paths and a uint8 tensor ``(N, C, H, W)``."""
    paths = find_pictures(folder)
    return paths, torch.stack([read_picture(path, shape) for path in paths])


def batches(paths: list[Path], shape: tuple[int, int, int], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, a batch at a time with the images' numbers, for folders that do not fit into memory."""
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        yield torch.stack([read_picture(path, shape) for path in some]), torch.arange(start, start + len(some))
