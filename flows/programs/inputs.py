"""What the programs that read checkpoints are given: a device, and images, the user's own or a run's held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor

from flows.config.building import build_trusted
from flows.errors import InputError, first_line
from flows.pictures import read_picture
from flows.runs.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from datamodules import ImageDataModule


def require_positive(cfg: DictConfig, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: naming the first.
    """
    for name in names:
        if cfg[name] < 1:
            raise InputError(f"{name} must be at least 1, not {cfg[name]}")


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one; any of torch's names is accepted.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used here: {first_line(error)}") from error
    return device


def held_out(checkpoint: Path, packages: Sequence[str] = ()) -> ImageDataModule:
    """The data set that a checkpoint was trained on, ready for use.

    Args:
        checkpoint: of the run.
        packages: that its class may come from, besides ``datamodules``.

    Raises:
        InputError: the checkpoint names a class outside of this project.
    """
    # Lightning comes along with these: seconds that sampling alone need not wait.
    from datamodules import Augmentation, ImageDataModule

    config = read_checkpoint(checkpoint)["config"]
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise InputError(f"{checkpoint} does not say which data it was trained on: give images=FOLDER")
    data: ImageDataModule = build_trusted(
        config["data"], allowed=(ImageDataModule, Augmentation), packages=("datamodules", *packages)
    )
    data.prepare_data()
    data.setup("test")
    return data


def held_out_images(checkpoint: Path, num_images: int, packages: Sequence[str] = ()) -> Tensor:
    """Some test images, spread evenly over the split."""
    test = held_out(checkpoint, packages).test
    num_images = min(num_images, len(test))
    return test.gather([index * len(test) // num_images for index in range(num_images)])


def read_pictures(paths: list[Path], shape: tuple[int, int, int]) -> Tensor:
    """Pictures, checked and read: uint8 ``(N, C, H, W)``."""
    return torch.stack([read_picture(path, shape) for path in paths])


def batches(paths: list[Path], shape: tuple[int, int, int], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures, a batch at a time, for folders that do not fit into memory; each image with a number of its own.

    The number is a hash of the pixels, so that an image's noise, and its score, do not depend on what lies beside it.
    """
    for start in range(0, len(paths), batch_size):
        images = read_pictures(paths[start : start + batch_size], shape)
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]
        yield images, torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])  # int64 has a sign
