"""Real photographs that need no download: those that ship inside scikit-learn and scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from datamodules.base import ImageDataModule
from datamodules.loading.datasets import ImageDataset
from flows.errors import InputError

Collection = Literal["photos", "hubble"]

PHOTOGRAPHS = {
    "photos": ("china", "flower", "astronaut", "chelsea", "coffee", "rocket", "motorcycle"),
    "hubble": ("hubble_deep_field",),
}

BLOCK_SIZE = 96
"""Side of the blocks that are held out whole, in pixels."""

PERIOD, TEST_PHASE, VALIDATION_PHASE = 7, 0, 4
"""Of every seven blocks, in reading order, the first is for testing and the fifth for validation."""


def photograph(name: str) -> NDArray[np.uint8]:
    """A whole photograph, ``(H, W, 3)``. It comes with libraries that are needed for nothing else."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return load_sample_image(f"{name}.jpg")
    if name == "motorcycle":
        return skimage.data.stereo_motorcycle()[0]  # the right eye sees the same
    return getattr(skimage.data, name)()


class Windows(ImageDataset):
    """Square windows into some photographs, in groups by the block that they lie in.

    Args:
        photographs: uint8 ``(C, H, W)`` each.
        places: int64 ``(N, 3)``: number of the photograph, top row and left column of each window.
        size: side of the windows in pixels.
    """

    def __init__(self, photographs: Sequence[Tensor], places: Tensor, size: int) -> None:
        self.photographs, self.places, self.size = list(photographs), places, size
        # Neighbours share colours and texture: a group is the block in which the window begins.
        self.groups = places[:, 0] * 10**6 + places[:, 1] // BLOCK_SIZE * 10**3 + places[:, 2] // BLOCK_SIZE

    def __len__(self) -> int:
        return len(self.places)

    def gather(self, indices: Sequence[int]) -> Tensor:
        size = self.size
        places = self.places[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        return torch.stack([self.photographs[i][:, top : top + size, left : left + size] for i, top, left in places])


@dataclass(eq=False)
class PhotographCrops(ImageDataModule):
    """Crops of a few colour photographs, with whole regions held out.

    Each photograph is cut into blocks of 96 x 96 pixels (what is left over at the right and bottom is not used). Of
    every seven blocks in reading order the first is for testing and the fifth for validation. A training image is any
    window that lies inside training blocks, so no held-out pixel is ever seen in training. The validation and test
    images are disjoint windows, side by side in their blocks: fixed, and where ``image_size`` divides 96 every pixel of
    the blocks is counted once.

    Collections (all 8-bit colour):

    * ``photos``: china and flower from scikit-learn; astronaut, chelsea, coffee, rocket and the left view of the
      motorcycle from scikit-image.
    * ``hubble``: scikit-image's Hubble deep field, a stand-in for the paper's galaxies.

    Args:
        collection: which photographs.
        image_size: side of the crops, at most 96.

    Raises:
        InputError: a size above 96.
    """

    collection: Collection

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.image_size <= BLOCK_SIZE:
            raise InputError(f"data.image_size must be between 1 and {BLOCK_SIZE}, not {self.image_size}")

    @property
    def set_name(self) -> str:
        return self.collection

    def load_splits(self) -> tuple[Windows, Windows, Windows]:
        arrays = [photograph(name) for name in PHOTOGRAPHS[self.collection]]
        photographs = [_as_tensor(array, self.num_channels) for array in arrays]
        phases = [_phases(photograph) for photograph in photographs]
        size = self.image_size
        training = [(phase != TEST_PHASE) & (phase != VALIDATION_PHASE) for phase in phases]
        places = [_everywhere(training, size)]
        places += [_tiles([phase == held for phase in phases], size) for held in (VALIDATION_PHASE, TEST_PHASE)]
        train, val, test = (Windows(photographs, each, size) for each in places)
        return train, val, test


def _as_tensor(array: NDArray[np.uint8], num_channels: int) -> Tensor:
    """A colour photograph ``(H, W, 3)`` as ``(num_channels, H, W)``; one channel is the luminance (ITU-R 601)."""
    picture = Image.fromarray(array).convert({1: "L", 3: "RGB"}[num_channels])
    return torch.from_numpy(np.array(picture)).view(*array.shape[:2], num_channels).permute(2, 0, 1).contiguous()


def _phases(photograph: Tensor) -> Tensor:
    """The place of each block of a photograph in its group of seven, ``(H // 96, W // 96)``."""
    rows, columns = photograph.shape[1] // BLOCK_SIZE, photograph.shape[2] // BLOCK_SIZE
    return (torch.arange(rows * columns) % PERIOD).view(rows, columns)


def _everywhere(allowed: Sequence[Tensor], size: int) -> Tensor:
    """Places of all windows that lie inside the allowed blocks, ``(N, 3)``."""
    places = []
    for number, blocks in enumerate(allowed):
        forbidden = (~blocks).float().repeat_interleave(BLOCK_SIZE, 0).repeat_interleave(BLOCK_SIZE, 1)
        touches_forbidden = max_pool2d(max_pool2d(forbidden[None], (size, 1), stride=1), (1, size), stride=1)[0]
        inside = (touches_forbidden == 0).nonzero()
        places.append(torch.nn.functional.pad(inside, (1, 0), value=number))
    return torch.cat(places)


def _tiles(allowed: Sequence[Tensor], size: int) -> Tensor:
    """Places of the disjoint windows that tile the allowed blocks, ``(N, 3)``."""
    offsets = range(0, BLOCK_SIZE - size + 1, size)
    places = [
        (number, BLOCK_SIZE * row + top, BLOCK_SIZE * column + left)
        for number, blocks in enumerate(allowed)
        for row, column in blocks.nonzero().tolist()
        for top in offsets
        for left in offsets
    ]
    return torch.tensor(places)
