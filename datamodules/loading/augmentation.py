"""Random flips, transposes and shifts of uint8 images: permutations and repetitions of pixels, nothing in between."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flows.errors import InputError
from flows.randomness import Stream, generator_for

Fill = Literal["nearest", "reflect"]

LARGEST_SHIFT = 0.5
"""Of an image's side: what is shifted further is mostly fill."""


class Augmentation:
    """Moves the pixels of each image at random, differently for each: shift, then flips, then transpose.

    With row map ``r`` and column map ``c`` of an image, ``y[:, i, j] = x[:, r(i), c(j)]``, and the same with ``i`` and
    ``j`` exchanged where it is transposed. Everything is a gather of whole pixels, so values stay exact uint8.

    What happens to an image is a function of 63 random bits alone (:func:`draw_bits`), which the caller draws for each
    place in an epoch. It depends neither on the batch size nor on the number of processes, and a resumed training
    sees what the undisturbed one would have seen.

    Args:
        horizontal_flip: mirror left and right, with probability 1/2.
        vertical_flip: mirror top and bottom, with probability 1/2.
        transpose: exchange rows and columns, with probability 1/2; images must be square.
        shift: largest shift in either direction as a part of the side, in [0, 0.5]. Drawn uniformly from the whole
            numbers of pixels in that range, independently for rows and columns.
        fill: what comes in at the border. ``nearest`` repeats the outermost pixel, ``aaaa|abcd|dddd``;
            ``reflect`` mirrors the image, ``dcba|abcd|dcba``.

    Shapes: uint8 ``(B, C, H, W)`` and int64 ``(B,)`` to uint8 ``(B, C, H, W)``.

    Raises:
        InputError: a shift outside [0, 0.5].

    Note:
        The paper's code draws fractional shifts and interpolates bilinearly. Here shifts are whole pixels, which is
        fifty times faster and keeps the images' noise, which likelihoods are made of.
    """

    def __init__(
        self,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        transpose: bool = False,
        shift: float = 0.0,
        fill: Fill = "nearest",
    ) -> None:
        if not 0 <= shift <= LARGEST_SHIFT:
            raise InputError(f"augment.shift must be between 0 and {LARGEST_SHIFT} (a part of the side), not {shift}")
        self.horizontal_flip, self.vertical_flip, self.transpose = horizontal_flip, vertical_flip, transpose
        self.shift, self.fill = shift, fill

    @property
    def is_identity(self) -> bool:
        """Whether every image stays as it is."""
        return not (self.horizontal_flip or self.vertical_flip or self.transpose or self.shift)

    def __call__(self, images: Tensor, bits: Tensor) -> Tensor:
        """Augmented copies of ``images``; the same bits do the same to the same image, always."""
        if self.is_identity or len(images) == 0:
            return images
        _, _, height, width = images.shape
        rows = self._map(height, bits & 1 if self.vertical_flip else None, bits >> 3 & 0xFFFF)
        columns = self._map(width, bits >> 1 & 1 if self.horizontal_flip else None, bits >> 19 & 0xFFFF)
        places = rows[:, :, None] * width + columns[:, None, :]
        if self.transpose:
            if height != width:
                raise InputError(f"augment.transpose needs square images, not {height} x {width}")
            transposed = (bits >> 2 & 1).bool()[:, None, None]
            places = torch.where(transposed, places.transpose(1, 2), places)
        index = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, index).view_as(images)

    def _map(self, size: int, flipped: Tensor | None, number: Tensor) -> Tensor:
        """Which row of the image comes to stand in each row, ``(B, size)``; ``number`` is uniform in [0, 2^16)."""
        largest = int(self.shift * size)
        places = torch.arange(size).expand(len(number), size)
        if flipped is not None:
            places = torch.where(flipped[:, None].bool(), size - 1 - places, places)
        places = places + (number * (2 * largest + 1) >> 16)[:, None] - largest
        if self.fill == "reflect":
            places = torch.where(places < 0, -1 - places, places)
            places = torch.where(places >= size, 2 * size - 1 - places, places)
        return places.clamp(0, size - 1)


def draw_bits(num_images: int, stream: Stream, seed: int, *counters: int) -> Tensor:
    """63 random bits for each image, int64 ``(num_images,)``; see :func:`flows.randomness.generator_for`."""
    return torch.randint(2**63 - 1, (num_images,), generator=generator_for(stream, seed, *counters))
