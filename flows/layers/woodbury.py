"""Woodbury transformations: low-rank updates of the channels and of the pixels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flows.errors import InputError
from flows.layers.base import Layer, require_channels
from flows.layers.composite import Composite
from flows.layers.matrices import checked_inverse, log_abs_det
from flows.layers.weight_cache import WeightCache
from flows.numerics import same_for_every_image

NOISE_STD = 0.1
"""Standard deviation of the factors at the start."""


class LowRankUpdate(Layer):
    """Multiplies one dimension of an image, or two together, by ``I + U V`` with thin ``U (n, d)`` and ``V (d, n)``.

    Log-det: ``m log |det(I + V U)|``, a d x d determinant, where ``m = C H W / n`` vectors are multiplied. Inverse:
    ``I - U (I + V U)^-1 V``, the Woodbury identity.

    Args:
        image_shape: (C, H, W) of the images.
        dims: what is multiplied: ``"channels"``, ``"rows"`` (vectors of length H), ``"columns"`` (of length W), or
            ``"pixels"`` (of length H W).
        rank: d, at least 1; no more than n counts.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``; of the one size, except for ``"channels"``.

    Raises:
        InputError: a rank below 1, another dimension, images of another size.
        NonFiniteError: from ``inverse``, if ``I + V U`` is singular.

    Cost: ``2 d C H W`` multiplications, and ``O(d^3)`` in float64.

    Reference: Lu & Huang, *Woodbury Transformations for Deep Generative Flows*, NeurIPS 2020, section 3.
    """

    is_affine = True
    inverse_is_capturable = True

    def __init__(self, image_shape: tuple[int, int, int], dims: str, rank: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        lengths = {"channels": channels, "rows": height, "columns": width, "pixels": height * width}
        if dims not in lengths:
            raise InputError(f"dims must be {', '.join(lengths)}, not '{dims}'")
        if rank < 1:
            raise InputError(f"rank must be at least 1, not {rank}")
        self.dims, self.image_size = dims, None if dims == "channels" else (height, width)
        length = lengths[dims]
        self.left = nn.Parameter(NOISE_STD * torch.randn(length, min(rank, length)))
        self.right = nn.Parameter(NOISE_STD * torch.randn(min(rank, length), length))
        self._inverse_core: WeightCache[Tensor] = WeightCache()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x + self._multiplied(x, self.left, self.right)
        num_vectors = x.shape[1:].numel() // len(self.left)
        log_det = num_vectors * log_abs_det(self._core(), self.left.dtype)
        return z, same_for_every_image(log_det.to(self.left.dtype), x)

    def inverse(self, z: Tensor) -> Tensor:
        core = self._inverse_core.get(self._inverted_core, self.left, self.right)
        return z - self._multiplied(z, self.left @ core, self.right)

    def _core(self) -> Tensor:
        """``I + V U`` in float64, (d, d)."""
        product = self.right.double() @ self.left.double()
        return product + torch.eye(len(product), dtype=product.dtype, device=product.device)

    def _inverted_core(self) -> Tensor:
        core = self._core()
        what = f"a Woodbury update of rank {len(core)} of {self.dims}"
        return checked_inverse(core, torch.linalg.inv_ex(core).inverse, what, self.left.dtype)

    def _multiplied(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """``U V`` times each of the vectors."""
        self.require_image_size(x)
        if self.dims == "channels":
            return (left @ (right @ x.flatten(2))).view(x.shape)
        if self.dims == "rows":
            return left @ (right @ x)
        vectors = x if self.dims == "columns" else x.flatten(2)
        return ((vectors @ right.T) @ left.T).view(x.shape)


class WoodburyConv2d(Composite):
    """A low-rank update of the channels, then of the pixels.

    Map: with the image as a C x N matrix, ``N = H W``: ``z = (I + Uc Vc) x (I + Us Vs)``. Log-det:
    ``N log |det(I + Vc Uc)| + C log |det(I + Vs Us)|``. Inverse: each by the Woodbury identity.

    The memory-efficient form replaces the update of all pixels together by one along the columns and one along the
    rows, and so ``N`` by ``H + W`` in the number of parameters.

    Args:
        num_channels: C, at least 1.
        image_size: (H, W) of the images; a flow gives it. The updates of pixels are tied to it.
        channel_rank: of the channels' update, at least 1.
        pixel_rank: of the pixels', at least 1.
        memory_efficient: the form by rows and columns.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, of the one size.

    Raises:
        InputError: a rank below 1, images of another size.
        NonFiniteError: from ``inverse``, if an update is singular.

    Cost: ``2 (dc + ds) C H W`` multiplications, with the memory-efficient form ``2 (dc + 2 ds) C H W``.

    Reference: Lu & Huang, *Woodbury Transformations for Deep Generative Flows*, NeurIPS 2020, sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> from flows.layers import WoodburyConv2d
        >>> layer, x = WoodburyConv2d(4, (6, 5), memory_efficient=True), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        num_channels: int,
        image_size: tuple[int, int],
        channel_rank: int = 16,
        pixel_rank: int = 16,
        *,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        self.image_size = (image_size[0], image_size[1])
        shape = (num_channels, *self.image_size)
        dims = ("columns", "rows") if memory_efficient else ("pixels",)
        self.channels = LowRankUpdate(shape, "channels", channel_rank)
        self.pixels = nn.ModuleList(LowRankUpdate(shape, name, pixel_rank) for name in dims)

    def parts(self) -> Iterable[Layer]:
        return self.channels, *self.pixels
