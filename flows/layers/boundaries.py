"""How a convolution continues an image beyond its border so that a transform takes it apart, and that transform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flows.numerics import at_least_float32


class Boundary(ABC):
    """A continuation of images, and the transform in which a convolution with it is one matrix per frequency."""

    @abstractmethod
    def taps(self, kernel_size: int) -> tuple[int, int]:
        """The taps of a k x k filter that are free, as height and width."""

    @abstractmethod
    def filter(self, weight: Tensor) -> Tensor:
        """The whole filter, ``(C, C, k, k)``, from its free taps."""

    @abstractmethod
    def places(self, size: int, reach: int, device: torch.device) -> Tensor:
        """Which pixel stands at each of the positions ``-reach, ..., size - 1 + reach`` of a line."""

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """The spectrum of images, ``(..., H, W) -> (..., U, V)``."""

    @abstractmethod
    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The images of a spectrum."""

    @abstractmethod
    def matrices(self, filters: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The matrix of each frequency, ``(C, C, k, k) -> (U, V, C, C)``, in double precision."""

    @abstractmethod
    def multiplicity(self, matrices: Tensor, width: int) -> Tensor:
        """How many frequencies of the whole spectrum each column stands for, ``(V,)``."""

    def extend(self, x: Tensor, reach: int) -> Tensor:
        """``x`` with ``reach`` more pixels on every side; more than its own size is fine."""
        rows, columns = (self.places(size, reach, x.device) for size in x.shape[-2:])
        return x.index_select(-2, rows).index_select(-1, columns)


class Wrap(Boundary):
    """A torus: the discrete Fourier transform, half of it, since images are real. Every tap of a filter is free."""

    def taps(self, kernel_size: int) -> tuple[int, int]:
        return kernel_size, kernel_size

    def filter(self, weight: Tensor) -> Tensor:
        return weight

    def places(self, size: int, reach: int, device: torch.device) -> Tensor:
        return torch.arange(-reach, size + reach, device=device) % size

    def transform(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(at_least_float32(x))

    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        return torch.fft.irfft2(spectrum, s=image_size)

    def matrices(self, filters: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Complex128 ``(H, W // 2 + 1, C, C)``.

        A cross-correlation reads ``x`` at ``p + tap``, so in the transform the tap at ``(dy, dx)`` counts with
        ``exp(+2 pi i (u dy / H + v dx / W))``: the tap's place on the torus is ``(-dy, -dx)``.
        """
        reach = filters.shape[-1] // 2
        offsets = torch.arange(-reach, reach + 1, device=filters.device)
        rows, columns = (-offsets % size for size in image_size)
        torus = filters.new_zeros(*image_size, *filters.shape[:2], dtype=torch.float64)
        taps = filters.double().permute(2, 3, 0, 1)
        # Taps that wrap onto each other add up.
        torus = torus.index_put((rows[:, None], columns[None, :]), taps, accumulate=True)
        return torch.fft.rfft2(torus, dim=(0, 1))

    def multiplicity(self, matrices: Tensor, width: int) -> Tensor:
        multiplicity = matrices.new_full((width // 2 + 1,), 2.0, dtype=torch.float64)
        multiplicity[0] = 1.0
        if width % 2 == 0:
            multiplicity[-1] = 1.0
        return multiplicity


class Reflect(Boundary):
    """Mirrors behind the outermost pixels, ``... c b a | a b c ...``: the cosine transform, for even filters alone.

    A filter is even if ``w(dy, dx) = w(-dy, dx) = w(dy, -dx)``; a quarter of its taps is free. Each frequency has one
    real matrix, ``S_uv = sum_dy,dx w(dy, dx) cos(pi u dy / H) cos(pi v dx / W)``.
    """

    def taps(self, kernel_size: int) -> tuple[int, int]:
        return kernel_size // 2 + 1, kernel_size // 2 + 1

    def filter(self, weight: Tensor) -> Tensor:
        reach = weight.shape[-1] - 1
        offsets = torch.arange(-reach, reach + 1, device=weight.device).abs()
        return weight.index_select(2, offsets).index_select(3, offsets)

    def places(self, size: int, reach: int, device: torch.device) -> Tensor:
        places = torch.arange(-reach, size + reach, device=device) % (2 * size)
        return torch.minimum(places, 2 * size - 1 - places)

    def transform(self, x: Tensor) -> Tensor:
        rows, columns = (_cosines(size, like=x) for size in x.shape[-2:])
        return rows @ at_least_float32(x) @ columns.T

    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        rows, columns = (_cosines(size, like=spectrum) for size in image_size)
        return rows.T @ spectrum @ columns

    def matrices(self, filters: Tensor, image_size: tuple[int, int]) -> Tensor:
        reach = filters.shape[-1] // 2
        offsets = torch.arange(-reach, reach + 1, device=filters.device, dtype=torch.float64)
        waves = []
        for size in image_size:
            frequencies = torch.arange(size, device=filters.device, dtype=torch.float64)
            waves.append(torch.cos(math.pi * frequencies[:, None] * offsets / size))
        return torch.einsum("uy,vx,oiyx->uvoi", *waves, filters.double())

    def multiplicity(self, matrices: Tensor, width: int) -> Tensor:
        return matrices.new_ones(width)


def _cosines(size: int, like: Tensor) -> Tensor:
    """The orthogonal matrix of the cosine transform (DCT-II) of lines of some length."""
    places = torch.arange(size, device=like.device, dtype=torch.float64)
    matrix = torch.cos(math.pi * (places + 0.5) * places[:, None] / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return at_least_float32(matrix.to(like.dtype))


BOUNDARIES: dict[str, Boundary] = {"wrap": Wrap(), "reflect": Reflect()}
