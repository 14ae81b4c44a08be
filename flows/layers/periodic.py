"""The paper's second layer: a convolution on a torus, taken apart by the Fourier transform; or between mirrors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flows.errors import InputError
from flows.layers.base import NOISE_STD, Layer, require_channels, require_odd_kernel
from flows.layers.boundaries import BOUNDARIES
from flows.layers.matrices import checked_inverse, random_reflections, reflected
from flows.layers.pixelwise import PixelMap
from flows.layers.weight_cache import WeightCache
from flows.numerics import same_for_every_image


class PeriodicConv2d(Layer):
    """An invertible k x k convolution whose image wraps around at its borders, or is mirrored there.

    Map: ``z = w (*) x + bias``, circular, with an unconstrained filter. Under the discrete Fourier transform the map
    falls apart into one complex C x C matrix per frequency, ``z^_uv = W^_uv x^_uv``.
    Log-det: ``sum_uv log |det W^_uv|``; since ``w`` is real, frequencies ``uv`` and ``-u-v`` are conjugate and half of
    the spectrum suffices. Inverse: ``x^_uv = W^_uv^-1 z^_uv``, the matrices inverted once per set of weights and
    image size.

    With ``boundary="reflect"`` nothing wraps around. The filter is even, and the cosine transform takes the place of
    Fourier's: one real matrix per frequency (:class:`~flows.layers.boundaries.Reflect`).

    With ``orthogonal``, each frequency's matrix is ``Q0 (I - A) (I + A)^-1``, with ``A_uv = (W^_uv - W^_uv^H) / 2``
    skew-Hermitian and ``Q0`` a fixed random orthogonal matrix. The map is then orthogonal: log-det 0, inverse by the
    conjugate transpose. It reads the whole image, and is computed by the transform.

    Starts with a random orthogonal centre tap, and noise of standard deviation 0.02 on every tap.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.
        boundary: ``"wrap"`` or ``"reflect"``.
        orthogonal: keep the map orthogonal.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W, also smaller than k (the filter then wraps onto itself).

    Raises:
        InputError: an even kernel, another boundary.
        NonFiniteError: from ``inverse``, if a frequency's matrix is singular.

    Warns:
        IllConditionedWarning: once for each size, from ``inverse``, if fewer than about four digits can be right.

    Cost: forward, ``k^2 C^2`` multiplications per pixel; log-det with its gradient, ``H W / 2`` inverses of C x C
    matrices, in complex128; inverse, two FFTs and ``C^2`` complex multiplications per frequency.

    Reference: section 3.2 of the paper, figure 6; for mirrors Karami et al., *Invertible Convolutional Flow*, NeurIPS
    2019; for ``orthogonal`` Trockman & Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR
    2021.

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

    is_affine = absorbs_pixel_maps = True
    inverse_is_capturable = True
    start: Tensor

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        *,
        boundary: Literal["wrap", "reflect"] = "wrap",
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        require_odd_kernel(kernel_size)
        if boundary not in BOUNDARIES:
            raise InputError(f"boundary must be {' or '.join(BOUNDARIES)}, not '{boundary}'")
        self.boundary, self.orthogonal, self.reach = BOUNDARIES[boundary], orthogonal, kernel_size // 2
        taps = self.boundary.taps(kernel_size)
        self.weight = nn.Parameter(NOISE_STD * torch.randn(num_channels, num_channels, *taps))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        if orthogonal:
            self.register_buffer("start", random_reflections(num_channels))
        else:
            centre = taps[0] - 1 - self.reach  # of a quarter of the taps the first
            with torch.no_grad():
                self.weight[:, :, centre, centre] += nn.init.orthogonal_(torch.empty(num_channels, num_channels))
        self._inverse_matrices: WeightCache[Tensor] = WeightCache()

    def forward(self, x: Tensor, before: PixelMap | None = None) -> tuple[Tensor, Tensor]:
        image_size = (x.shape[2], x.shape[3])
        of_before = None if before is None else before.log_det(x)
        if self.orthogonal:
            x = x if before is None else before(x)
            z = self._multiply(self.frequency_matrices(*image_size), x) + self.bias[:, None, None]
            log_det = self.weight.new_zeros(())
        else:
            filters = self.boundary.filter(self.weight)
            z = self.boundary.convolve(x, before, filters, self.bias)
            log_det = self.boundary.log_abs_det(filters, image_size).to(self.weight.dtype)
        log_det = same_for_every_image(log_det, x)
        return z, log_det if of_before is None else log_det + of_before

    def inverse(self, z: Tensor) -> Tensor:
        image_size = (z.shape[2], z.shape[3])
        inverse_matrices = self._inverse_matrices.get(
            lambda: self._inverted_matrices(image_size), self.weight, *self.buffers(), key=image_size
        )
        return self._multiply(inverse_matrices, z - self.bias[:, None, None])

    def _multiply(self, matrices: Tensor, x: Tensor) -> Tensor:
        """Each frequency of ``x`` times its matrix."""
        spectrum = self.boundary.transform(x)
        # (U, V, C, C) @ (U, V, C, B): one product per frequency, the batch as its columns.
        columns = spectrum.permute(2, 3, 1, 0).contiguous()  # strided ones are multiplied slowly
        multiplied = (matrices.to(columns.dtype) @ columns).permute(3, 2, 0, 1)
        return self.boundary.restore(multiplied, (x.shape[2], x.shape[3])).to(self.weight.dtype)

    def _inverted_matrices(self, image_size: tuple[int, int]) -> Tensor:
        """``W^_uv^-1``, in the type that the transform of an image has."""
        matrices = self.frequency_matrices(*image_size)
        what = f"a periodic convolution of {len(self.bias)} channels on {image_size[0]} x {image_size[1]} images"
        precision = torch.promote_types(self.weight.dtype, torch.float32)
        inverse = matrices.mH if self.orthogonal else torch.linalg.inv_ex(matrices).inverse
        return checked_inverse(matrices, inverse, what, precision.to_complex() if matrices.is_complex() else precision)

    def frequency_matrices(self, height: int, width: int) -> Tensor:
        """``W^_uv`` for the non-redundant part of the spectrum, in double precision: ``(U, V, C, C)``."""
        matrices = self.boundary.matrices(self.boundary.filter(self.weight), (height, width))
        if not self.orthogonal:
            return matrices
        skew = (matrices - matrices.mH) / 2
        identity = torch.eye(len(self.bias), dtype=skew.dtype, device=skew.device)
        cayley = torch.linalg.solve(identity + skew, identity - skew)  # the two commute
        return reflected(self.start.double()).to(skew.dtype) @ cayley
