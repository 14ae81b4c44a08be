"""Real photographs that need no download: those that ship inside scikit-learn and scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import max_pool2d

from datamodules.base import ImageDataModule, ImageDataset
from flows.errors import InputError

Collection = Literal["photos", "hubble"]

PHOTOGRAPHS: dict[str, dict[str, Callable[[], NDArray[np.uint8]]]] = {
    "photos": {
        "china": lambda: load_sample_image("china.jpg"),
        "flower": lambda: load_sample_image("flower.jpg"),
        "astronaut": skimage.data.astronaut,
        "chelsea": skimage.data.chelsea,
        "coffee": skimage.data.coffee,
        "rocket": skimage.data.rocket,
        "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],  # the right eye sees what the left one sees
    },
    "hubble": {"hubble_deep_field": skimage.data.hubble_deep_field},
}

BLOCK_SIZE = 96
VALIDATION_SHARE, TEST_SHARE = 0.10, 0.15
SPLIT_SEED = 0
"""Fixed for good: which blocks are held out is part of the data set, not of a run."""


class Windows(ImageDataset):
    """Square windows into some photographs.

    Args:
        photographs: uint8 ``(3, H, W)`` each.
        places: int64 ``(N, 3)``: number of the photograph, top row and left column of each window.
        size: side of the windows in pixels.
    """

    def __init__(self, photographs: Sequence[Tensor], places: Tensor, size: int) -> None:
        self.photographs, self.places, self.size = list(photographs), places, size

    def __len__(self) -> int:
        return len(self.places)

    def gather(self, indices: Sequence[int]) -> Tensor:
        size = self.size
        places = self.places[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        windows = [self.photographs[i][:, top : top + size, left : left + size] for i, top, left in places]
        return torch.stack(windows) if windows else self.photographs[0].new_empty(0, 3, size, size)


class PhotographCrops(ImageDataModule):
    """Crops of a few colour photographs, with whole regions held out.

    Each photograph is cut into blocks of 96 x 96 pixels (what is left over at the right and bottom is not used); 15 %
    of the blocks of every photograph are for testing, 10 % for validation. A training image is any window that lies
    inside training blocks, so no held-out pixel is ever seen in training. The validation and test images are the
    disjoint windows that tile their blocks: fixed, every pixel counted once.

    Collections (all 8-bit colour, no labels):

    * ``photos``: china and flower from scikit-learn; astronaut, chelsea, coffee, rocket and the left view of the
      motorcycle from scikit-image.
    * ``hubble``: scikit-image's Hubble deep field, a stand-in for the paper's galaxies.

    Args:
        collection: which photographs.
        image_size: side of the crops, at most 96.
        **options: see :class:`datamodules.base.ImageDataModule`.

    Raises:
        InputError: an unknown collection or a size above 96.
    """

    def __init__(self, collection: Collection, image_size: int = 32, **options: int | None) -> None:
        super().__init__(num_channels=3, image_size=image_size, **options)  # type: ignore[arg-type]
        if collection not in get_args(Collection):
            raise InputError(f"collection must be one of {', '.join(get_args(Collection))}, not '{collection}'")
        if not 1 <= image_size <= BLOCK_SIZE:
            raise InputError(f"data.image_size must be between 1 and {BLOCK_SIZE}, not {image_size}")
        self.collection = collection

    def setup(self, stage: str | None = None) -> None:
        arrays = [load() for load in PHOTOGRAPHS[self.collection].values()]
        photographs = [torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) for array in arrays]
        splits = [_blocks(photograph, number) for number, photograph in enumerate(photographs)]
        size = self.image_size
        self.train = Windows(photographs, _everywhere([split == TRAIN for split in splits], size), size)
        self.val = Windows(photographs, _tiles([split == VALIDATION for split in splits], size), size)
        self.test = Windows(photographs, _tiles([split == TEST for split in splits], size), size)


TRAIN, VALIDATION, TEST = 0, 1, 2


def _blocks(photograph: Tensor, number: int) -> Tensor:
    """To which split each block of a photograph belongs, ``(H // 96, W // 96)``."""
    rows, columns = photograph.shape[1] // BLOCK_SIZE, photograph.shape[2] // BLOCK_SIZE
    count = rows * columns
    order = np.random.default_rng([SPLIT_SEED, number]).permutation(count)
    num_test, num_validation = max(1, round(TEST_SHARE * count)), max(1, round(VALIDATION_SHARE * count))
    split = torch.full((count,), TRAIN)
    split[order[:num_test]] = TEST
    split[order[num_test : num_test + num_validation]] = VALIDATION
    return split.view(rows, columns)


def _everywhere(allowed: Sequence[Tensor], size: int) -> Tensor:
    """Places of all windows that lie inside the allowed blocks, ``(N, 3)``."""
    places = []
    for number, blocks in enumerate(allowed):
        forbidden = (~blocks).float().repeat_interleave(BLOCK_SIZE, 0).repeat_interleave(BLOCK_SIZE, 1)
        touches_forbidden = max_pool2d(forbidden[None], size, stride=1)[0]
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
