"""The galaxies of the paper's table 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.loading.datasets import ImageDataset, Tensors
from datamodules.prepared import BenchmarkDataModule
from datamodules.preparing.conversion import Plan
from datamodules.preparing.decoding import PictureReader
from datamodules.preparing.pictures import Place, list_pictures, picture_chunks
from flows.errors import InputError

FOLDERS = {"train": "training", "val": "validation", "test": "test"}

FULL_SIZE = 64
"""Side to which every picture is resized first."""

WANTED = (
    "get the data of Ackermann et al. 2018 (github.com/SpaceML/merger_transfer_learning) and give the folder with "
    "galaxy_mergers/noninteracting/{training,validation,test}/*.jpeg as data.source=FOLDER"
)


@dataclass(kw_only=True, eq=False)
class Galaxies(BenchmarkDataModule):
    """Galaxies that do not interact, from the merger-classification set: uint8 ``(3, 32, 32)`` or ``(3, 64, 64)``.

    The pictures are resized to 64 x 64, whatever their proportions: bilinear, after a Gaussian blur against aliasing.
    For 32 x 32 they are then averaged over blocks of 2 x 2 pixels. Both steps round down, as in the paper's code.
    There are no labels.

    Splits: ``holdout`` takes the three folders as they are. ``paper`` does as the paper's code: the validation and test
    folders together are the test images, and validation is on them; every report says so.

    Args:
        source: the folder with ``galaxy_mergers/noninteracting/{training,validation,test}/*.jpeg``.
        image_size: 32 or 64.

    Raises:
        InputError: the folder is missing or has another layout; a picture is damaged.
        StorageError: the converted images cannot be stored.

    Note:
        The paper's conversion multiplies by 256 and lets a value of 1.0 wrap around to 0: here it is clipped to 255.
        Its augmentation shifts at 64 x 64, before the averaging; here images are shifted at their final size.

    Reference: Ackermann et al., Using transfer learning to detect galaxy mergers, 2018.
    """

    source: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (32, 64):
            raise InputError(f"the galaxies have 32 or 64 pixels: data.image_size cannot be {self.image_size}")

    @property
    def folder_name(self) -> str:
        return f"galaxy-{self.image_size}{'' if self.num_channels == 3 else '-grey'}"

    @property
    def picture_reader(self) -> PictureReader:
        return PictureReader(self.image_shape, scale_galaxy)

    def plan(self) -> Plan:
        if self.source is None:
            raise InputError(f"the galaxies are not downloaded for you: {WANTED}")
        folder = Path(self.source, "galaxy_mergers", "noninteracting")
        if not folder.is_dir():
            raise InputError(f"{self.source} has another layout: {WANTED}")
        files = {split: list_pictures(folder / name)[0] for split, name in FOLDERS.items()}
        for split, paths in files.items():
            if not paths:
                raise InputError(f"{folder / FOLDERS[split]} holds no .jpeg file: {WANTED}")
        splits = {split: picture_chunks([*map(Place, paths)], self.picture_reader) for split, paths in files.items()}
        return Plan(splits, {"name": self.folder_name, "folder": str(folder.resolve())})

    def arrange(self, prepared: dict[str, ImageDataset]) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        train, val, test = prepared["train"], prepared["val"], prepared["test"]
        if self.splits == "holdout":
            return train, val, test
        both = Tensors(torch.cat([split.gather(range(len(split))) for split in (val, test)]))  # some thousand images
        return train, both, both


def scale_galaxy(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to 64 x 64 pixels and average down to ``size``, a square: uint8 ``(3, size, size)``."""
    from skimage.transform import resize  # needed for nothing else

    side, _ = size
    resized = resize(np.asarray(picture), (FULL_SIZE, FULL_SIZE), mode="constant", anti_aliasing=True)
    full = np.clip(np.floor(resized * 256), 0, 255)
    factor = FULL_SIZE // side
    pooled = full.reshape(side, factor, side, factor, 3).mean((1, 3))
    return np.floor(pooled).astype(np.uint8).transpose(2, 0, 1)
