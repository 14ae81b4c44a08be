"""Randomness that depends on where it is used, not on what was drawn before.

Each use names itself by a few integers (seed, step, rank, index of an image ...) and gets a generator of its own. A
resumed training therefore draws what the undisturbed one would have drawn, and the noise of an image in an evaluation
depends neither on the batch size nor on the number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flows.errors import InputError

Noise = Literal["uniform", "normal"]
"""Kinds of dequantisation noise: U[0, 1) or N(0, 1) for every pixel and channel."""


class Stream(IntEnum):
    """What random numbers are for; two purposes never share a stream."""

    TRAINING_NOISE = 0
    EVALUATION_NOISE = 1
    TRAINING_ORDER = 2
    INITIALIZATION = 3
    SAMPLES = 4
    AUGMENTATION = 5
    PREVIEW = 6
    SEARCH = 7
    DIAGNOSTICS = 8
    GLOBAL_GENERATORS = 9


def generator_for(stream: Stream, seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator determined by its purpose, the run's seed (at least 0) and some counters (at least 0)."""
    state = np.random.SeedSequence([int(stream), seed, *counters]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def draw_noise(
    kind: Noise,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dequantisation noise; the generator is on the device."""
    draw = torch.rand if kind == "uniform" else torch.randn
    return draw(tuple(shape), generator=generator, device=device, dtype=dtype)


def evaluation_noise(
    kind: Noise, indices: Tensor, image_shape: tuple[int, ...], seed: int = 0, draw: int = 0
) -> Tensor:
    """Dequantisation noise for the images with these indices, ``(B,) -> (B, *image_shape)``, on the CPU.

    Args:
        kind: what the model's dequantiser takes.
        indices: int64, at least 0.
        image_shape: (channels, height, width).
        seed: of the evaluation.
        draw: 0 for the first noise of an image, 1 for another one that is independent of it, and so on.
    """
    further = [draw] if draw else []
    generators = [generator_for(Stream.EVALUATION_NOISE, seed, index, *further) for index in indices.tolist()]
    return torch.stack([draw_noise(kind, image_shape, generator) for generator in generators])


def require_seed(seed: int) -> None:
    """Refuse a seed that some generator does not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be at least 0 and below 2^32, not {seed}")
