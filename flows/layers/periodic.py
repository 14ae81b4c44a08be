"""The paper's second layer: a convolution on a torus, taken apart by the Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from flows.layers.autoregressive import NOISE_STD
from flows.layers.base import Layer, require_channels, require_odd_kernel
from flows.layers.matrices import checked_inverse
from flows.layers.weight_cache import WeightCache
from flows.numerics import at_least_float32, same_for_every_image


class PeriodicConv2d(Layer):
    """An invertible k x k convolution whose image wraps around at its borders.

    Map: ``z = w (*) x + bias``, circular, with an unconstrained filter. Under the discrete Fourier transform the map
    falls apart into one complex C x C matrix per frequency, ``z^_uv = W^_uv x^_uv``.
    Log-det: ``sum_uv log |det W^_uv|``; since ``w`` is real, frequencies ``uv`` and ``-u-v`` are conjugate and half of
    the spectrum suffices. Inverse: ``x^_uv = W^_uv^-1 z^_uv``, the matrices inverted once per set of weights and
    image size.

    Starts with a random orthogonal centre tap, and noise of standard deviation 0.02 on every tap.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W, also smaller than k (the filter then wraps onto itself).

    Raises:
        InputError: an even kernel.
        NonFiniteError: from ``inverse``, if a frequency's matrix is singular.

    Warns:
        IllConditionedWarning: once for each size, from ``inverse``, if fewer than about four digits can be right.

    Cost: forward, ``k^2 C^2`` multiplications per pixel; log-det, ``H W / 2`` factorisations of C x C matrices, in
    complex128; inverse, two FFTs and ``C^2`` complex multiplications per frequency.

    Reference: section 3.2 of the paper, figure 6.

    Note:
        The released code's Fourier inverse holds for k = 3 only and inverts the frequency matrices at every call.

    Example:
        >>> import torch
        >>> from flows.layers import PeriodicConv2d
        >>> layer, x = PeriodicConv2d(4, kernel_size=3), torch.randn(2, 4, 8, 8)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-4)
        True
    """

    is_affine = True
    inverse_is_capturable = True

    def __init__(self, num_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        require_channels(num_channels)
        require_odd_kernel(kernel_size)
        self.weight = nn.Parameter(NOISE_STD * torch.randn(num_channels, num_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        centre = kernel_size // 2
        with torch.no_grad():
            self.weight[:, :, centre, centre] += nn.init.orthogonal_(torch.empty(num_channels, num_channels))
        self._inverse_matrices: WeightCache[Tensor] = WeightCache()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        z = conv2d(_wrap(x, self.weight.shape[-1] // 2), self.weight, self.bias)
        log_abs_dets = torch.linalg.slogdet(self.frequency_matrices(height, width)).logabsdet
        log_det = (log_abs_dets * _multiplicity(width, like=log_abs_dets)).sum()
        return z, same_for_every_image(log_det.to(self.weight.dtype), x)

    def inverse(self, z: Tensor) -> Tensor:
        image_size = (z.shape[2], z.shape[3])
        inverse_matrices = self._inverse_matrices.get(
            lambda: self._inverted_matrices(image_size), self.weight, key=image_size
        )
        spectrum = torch.fft.rfft2(at_least_float32(z - self.bias[:, None, None]))
        # (H W', C, C) @ (H W', C, B): one product per frequency, the batch as its columns.
        columns = spectrum.permute(2, 3, 1, 0)
        solved = (inverse_matrices @ columns).permute(3, 2, 0, 1)
        return torch.fft.irfft2(solved, s=z.shape[-2:]).to(self.weight.dtype)

    def _inverted_matrices(self, image_size: tuple[int, int]) -> Tensor:
        """``W^_uv^-1``, in the complex type that the Fourier transform of an image has."""
        matrices = self.frequency_matrices(*image_size)
        what = f"a periodic convolution of {len(self.bias)} channels on {image_size[0]} x {image_size[1]} images"
        precision = torch.promote_types(self.weight.dtype, torch.float32).to_complex()
        return checked_inverse(matrices, torch.linalg.inv_ex(matrices).inverse, what, precision)

    def frequency_matrices(self, height: int, width: int) -> Tensor:
        """``W^_uv`` for the non-redundant half of the spectrum, complex128 ``(H, W // 2 + 1, C, C)``.

        A cross-correlation reads ``x`` at ``p + tap``, so in the transform the tap at ``(dy, dx)`` counts with
        ``exp(+2 pi i (u dy / H + v dx / W))``: the tap's place on the torus is ``(-dy, -dx)``.
        """
        reach = self.weight.shape[-1] // 2
        offsets = torch.arange(-reach, reach + 1, device=self.weight.device)
        rows, columns = (-offsets % height)[:, None], (-offsets % width)[None, :]
        torus = self.weight.new_zeros(height, width, *self.weight.shape[:2], dtype=torch.float64)
        taps = self.weight.double().permute(2, 3, 0, 1)
        torus = torus.index_put((rows, columns), taps, accumulate=True)  # taps that wrap onto each other add up
        return torch.fft.rfft2(torus, dim=(0, 1))


def _wrap(x: Tensor, reach: int) -> Tensor:
    """Continue ``x`` periodically by ``reach`` pixels on every side; more than its own size is fine."""
    height, width = x.shape[-2:]
    rows = torch.arange(-reach, height + reach, device=x.device) % height
    columns = torch.arange(-reach, width + reach, device=x.device) % width
    return x.index_select(2, rows).index_select(3, columns)


def _multiplicity(width: int, like: Tensor) -> Tensor:
    """How many frequencies of the whole spectrum each column of the half stands for: 1 or 2, ``(W // 2 + 1,)``."""
    multiplicity = like.new_full((width // 2 + 1,), 2.0)
    multiplicity[0] = 1.0
    if width % 2 == 0:
        multiplicity[-1] = 1.0
    return multiplicity
