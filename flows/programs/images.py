"""Images for the programs that work from a checkpoint: the user's own, or the held-out ones of the run's data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flows.config.building import build_trusted
from flows.errors import InputError
from flows.pictures import find_pictures, read_picture
from flows.runs.checkpoint import read_checkpoint

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
    """The same, a batch at a time, for folders that do not fit into memory; each image with a number of its own.

    The number is a hash of the pixels, so that an image's noise, and its score, do not depend on what lies beside it.
    """
    for start in range(0, len(paths), batch_size):
        images = torch.stack([read_picture(path, shape) for path in paths[start : start + batch_size]])
        yield images, torch.tensor([_fingerprint(image) for image in images])


def _fingerprint(image: Tensor) -> int:
    digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: int64 without a sign
