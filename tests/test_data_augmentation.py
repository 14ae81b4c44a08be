"""Augmentation moves pixels, by bits alone, and does what each option says."""

import numpy as np
import pytest
import torch

from datamodules.loading.augmentation import Augmentation, draw_bits
from flows.randomness import Stream

EVERYTHING = {"horizontal_flip": True, "vertical_flip": True, "transpose": True, "shift": 0.1, "fill": "reflect"}


def images(count: int = 64, size: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def bits(count: int = 64) -> torch.Tensor:
    return draw_bits(count, Stream.AUGMENTATION, 0, 0)


def test_nothing_is_done_unless_asked_for():
    x = images()
    assert torch.equal(Augmentation()(x, bits()), x)
    assert Augmentation().is_identity and not Augmentation(**EVERYTHING).is_identity


@pytest.mark.parametrize("option", ["horizontal_flip", "vertical_flip", "transpose"])
def test_each_image_is_either_moved_or_left(option):
    x = images()
    moved = {"horizontal_flip": x.flip(-1), "vertical_flip": x.flip(-2), "transpose": x.transpose(-1, -2)}[option]
    y = Augmentation(**{option: True})(x, bits())
    is_left, is_moved = ((y == expected).flatten(1).all(1) for expected in (x, moved))
    assert (is_left ^ is_moved).all()
    assert 16 <= is_moved.sum() <= 48


@pytest.mark.parametrize("fill", ["nearest", "reflect"])
def test_shift_agrees_with_padding_and_cropping(fill):
    x = images(200, 20)
    y = Augmentation(shift=0.1, fill=fill)(x, bits(200))
    mode = {"nearest": "edge", "reflect": "symmetric"}[fill]
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode)
    seen = set()
    for before, after in zip(padded, y.numpy(), strict=True):
        places = [
            (i, j) for i in range(5) for j in range(5) if np.array_equal(before[:, i : i + 20, j : j + 20], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25  # all shifts of up to two pixels occur


def test_what_happens_to_an_image_depends_on_its_bits_alone_and_leaves_the_input():
    x, augment = images(), Augmentation(**EVERYTHING)
    together = augment(x, bits())
    alone = torch.cat([augment(x[i : i + 1], bits()[i : i + 1]) for i in range(len(x))])
    assert torch.equal(together, alone)
    assert torch.equal(x, images()) and together.dtype == torch.uint8


def test_one_channel_and_empty_batches():
    assert Augmentation(**EVERYTHING)(images()[:, :1], bits()).shape == (64, 1, 20, 20)
    assert Augmentation(**EVERYTHING)(images()[:0], bits()[:0]).shape == (0, 3, 20, 20)
