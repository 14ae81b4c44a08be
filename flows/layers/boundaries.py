"""How a convolution continues an image beyond its border so that a transform takes it apart, and that transform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flows.kernels.convolution import Reading, is_served, same_size
from flows.kernels.spectrum import log_abs_det_of_spectrum
from flows.layers.constants import constant
from flows.layers.mapped_convolution import convolve_mapped
from flows.layers.matrices import log_abs_det
from flows.layers.pixelwise import PixelMap
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
    def convolve(self, x: Tensor, before: PixelMap | None, filters: Tensor, bias: Tensor) -> Tensor:
        """``filters * before(x) + bias``; what continues an image beyond its border continues a shift, too."""

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """The spectrum of images, ``(..., H, W) -> (..., U, V)``."""

    @abstractmethod
    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The images of a spectrum."""

    @abstractmethod
    def waves(self, image_size: tuple[int, int], kernel_size: int) -> Tensor:
        """What each tap of a filter counts with at each frequency, ``(U, V, k, k)``, in double precision."""

    @abstractmethod
    def multiplicity(self, image_size: tuple[int, int]) -> Tensor:
        """How many frequencies of the whole spectrum each one stands for, ``(U, V)``; 0 where another stands for it."""

    def matrices(self, filters: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The matrix of each frequency, ``(C, C, k, k) -> (U, V, C, C)``, in double precision."""
        waves, _, _ = _constants(self, image_size, filters.shape[-1], filters.device)
        return self._matrices(waves.flatten(0, 1), filters).unflatten(0, waves.shape[:2])

    def log_abs_det(self, filters: Tensor, image_size: tuple[int, int]) -> Tensor:
        """``log |det|`` of the whole convolution in nats, a scalar in float64."""
        _, distinct, multiplicity = _constants(self, image_size, filters.shape[-1], filters.device)
        if distinct.is_complex() and is_served(filters):
            return log_abs_det_of_spectrum(filters.flatten(2), distinct.flatten(1), multiplicity)
        return log_abs_det(self._matrices(distinct, filters), filters.dtype) @ multiplicity

    def _matrices(self, waves: Tensor, filters: Tensor) -> Tensor:
        """``(F, k, k), (C, C, k, k) -> (F, C, C)``: one product for all, and one for the imaginary part."""
        taps, waves = filters.double().permute(2, 3, 0, 1).flatten(2).flatten(0, 1), waves.flatten(1)
        matrices = torch.complex(waves.real @ taps, waves.imag @ taps) if waves.is_complex() else waves @ taps
        return matrices.unflatten(1, filters.shape[:2])


class Wrap(Boundary):
    """A torus: the discrete Fourier transform, half of it, since images are real. Every tap of a filter is free."""

    def taps(self, kernel_size: int) -> tuple[int, int]:
        return kernel_size, kernel_size

    def filter(self, weight: Tensor) -> Tensor:
        return weight

    def convolve(self, x: Tensor, before: PixelMap | None, filters: Tensor, bias: Tensor) -> Tensor:
        return convolve_mapped(x, before, filters, bias, same_size(filters.shape[-1], wraps=True))[0]

    def transform(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(at_least_float32(x))

    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        return torch.fft.irfft2(spectrum, s=image_size)

    def waves(self, image_size: tuple[int, int], kernel_size: int) -> Tensor:
        """Complex128, half of the spectrum: ``(H, W // 2 + 1, k, k)``.

        A cross-correlation reads ``x`` at ``p + tap``, so in the transform the tap at ``(dy, dx)`` counts with
        ``exp(+2 pi i (u dy / H + v dx / W))``.
        """
        rows, columns = (_angles(size, kernel_size, 2 * math.pi / size) for size in image_size)
        angles = rows[:, None, :, None] + columns[None, : image_size[1] // 2 + 1, None, :]
        return torch.polar(torch.ones_like(angles), angles)

    def multiplicity(self, image_size: tuple[int, int]) -> Tensor:
        """Frequencies ``uv`` and ``-u-v`` are conjugate; in the columns where ``v = -v`` half of the rows suffices."""
        height, width = image_size
        multiplicity = torch.full((height, width // 2 + 1), 2.0, dtype=torch.float64)
        for column in [0, width // 2] if width % 2 == 0 else [0]:
            multiplicity[height // 2 + 1 :, column] = 0.0
            multiplicity[0, column] = 1.0
            if height % 2 == 0:
                multiplicity[height // 2, column] = 1.0
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

    def convolve(self, x: Tensor, before: PixelMap | None, filters: Tensor, bias: Tensor) -> Tensor:
        rows, columns = (_mirrored(size, filters.shape[-1] // 2, x.device) for size in x.shape[2:])
        extended = x.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)
        return convolve_mapped(extended, before, filters, bias, Reading((0, 0, 0, 0)))[0]

    def transform(self, x: Tensor) -> Tensor:
        rows, columns = (_cosines(size, like=x) for size in x.shape[-2:])
        return rows @ at_least_float32(x) @ columns.T

    def restore(self, spectrum: Tensor, image_size: tuple[int, int]) -> Tensor:
        rows, columns = (_cosines(size, like=spectrum) for size in image_size)
        return rows.T @ spectrum @ columns

    def waves(self, image_size: tuple[int, int], kernel_size: int) -> Tensor:
        rows, columns = (_angles(size, kernel_size, math.pi / size).cos() for size in image_size)
        return rows[:, None, :, None] * columns[None, :, None, :]

    def multiplicity(self, image_size: tuple[int, int]) -> Tensor:
        return torch.ones(image_size, dtype=torch.float64)


def _mirrored(size: int, reach: int, device: torch.device) -> Tensor:
    """Which pixel stands at each of the positions ``-reach, ..., size - 1 + reach`` of a line between mirrors."""
    places = torch.arange(-reach, size + reach, device=device) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def _angles(size: int, kernel_size: int, unit: float) -> Tensor:
    """Frequency times offset times ``unit``, ``(size, k)``."""
    reach = kernel_size // 2
    return unit * torch.outer(torch.arange(size).double(), torch.arange(-reach, reach + 1).double())


@constant
def _constants(
    boundary: Boundary, image_size: tuple[int, int], kernel_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The waves of all frequencies; those of the distinct ones, and how many frequencies each of these stands for."""
    waves, multiplicity = boundary.waves(image_size, kernel_size), boundary.multiplicity(image_size)
    once = multiplicity > 0
    return waves.to(device), waves[once].to(device), multiplicity[once].to(device)


def _cosines(size: int, like: Tensor) -> Tensor:
    """The orthogonal matrix of the cosine transform (DCT-II) of lines of some length."""
    places = torch.arange(size, device=like.device, dtype=torch.float64)
    matrix = torch.cos(math.pi * (places + 0.5) * places[:, None] / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return at_least_float32(matrix.to(like.dtype))


BOUNDARIES: dict[str, Boundary] = {"wrap": Wrap(), "reflect": Reflect()}
