"""Handwritten digits that need no download: those inside scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from datamodules.base import ImageDataModule
from datamodules.loading.datasets import Subset, Tensors, held_out
from flows.errors import InputError

DIGIT_SIZE = 8
NUM_TEST, NUM_VALIDATION = 300, 150
LARGEST_SIZE = 64


@dataclass(kw_only=True, eq=False)
class Digits(ImageDataModule):
    """The 1,797 digits of scikit-learn, 8 x 8 pixels: uint8 ``(num_channels, image_size, image_size)``.

    1,347 for training, 150 for validation, 300 for testing; those held out are evenly spaced.
    The 17 grey levels 0 to 16 are stored as ``min(16 v, 255)``. The labels are the digits.

    Args:
        num_channels: 1, or 3 to repeat the grey.
        image_size: a multiple of 8, at most 64; larger images are surrounded by black.

    Raises:
        InputError: another size or number of channels.
    """

    num_channels: int = 1
    image_size: int = DIGIT_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % DIGIT_SIZE or not DIGIT_SIZE <= self.image_size <= LARGEST_SIZE:
            raise InputError(f"data.image_size must be 8, 16, ... {LARGEST_SIZE} for digits, not {self.image_size}")

    @property
    def set_name(self) -> str:
        return "digits"

    def load_splits(self) -> tuple[Subset, Subset, Subset]:
        from sklearn.datasets import load_digits  # needed for nothing else

        digits = load_digits()
        grey = torch.from_numpy(digits.images).mul(16).clamp(max=255).to(torch.uint8)
        margin = (self.image_size - DIGIT_SIZE) // 2
        images = pad(grey, [margin] * 4)[:, None].repeat(1, self.num_channels, 1, 1)
        whole = Tensors(images, torch.from_numpy(digits.target))
        rest, test = held_out(len(images), NUM_TEST)
        training, validation = held_out(len(rest), NUM_VALIDATION)
        return Subset(whole, rest[training]), Subset(whole, rest[validation]), Subset(whole, test)
