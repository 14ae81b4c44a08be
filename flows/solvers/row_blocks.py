"""Row-block substitution: the arithmetic that the ``torch`` and the ``cuda`` backend share.

Cut the map into rows of ``C W`` numbers. Within a row the convolution is one matrix ``T``. Between row i and the row
``a`` dilated steps before it in the order of substitution it is a matrix ``S_a``. Both are the same for every row::

    z_i = T x_i + sum_a S_a x_(i + a)        x_i = T^-1 z_i - sum_a (T^-1 S_a) x_(i + a)

So the inverse is one product with ``T^-1`` for all rows at once, then at most ``(k - 1) / 2`` products for each row.

Shapes in this file: B batch, H rows, W columns, C channels, k kernel size, R = C W numbers in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flows.numerics import full_precision

DENSE_UNKNOWNS = 1024  # numbers in an image up to which one dense product beats a walk over the rows


def centre_inverse(weight_CCkk: Tensor, direction: str) -> Tensor:
    """The inverse, (C, C), of the triangular centre tap."""
    middle = weight_CCkk.shape[-1] // 2
    centre_CC = weight_CCkk[:, :, middle, middle]
    unit_CC = torch.eye(len(centre_CC), dtype=weight_CCkk.dtype, device=weight_CCkk.device)
    return torch.linalg.solve_triangular(centre_CC, unit_CC, upper=direction == "upper")


class RowBlocks:
    """What row-block substitution needs to know of the weights, and the substitution itself.

    Everything is computed in float64 and kept in the type of ``weight``.

    Cost: ``T^-1`` takes ``O(W C^3)``, because it is block-Toeplitz: one block for each distance between two columns.
    The products ``T^-1 S_a`` take ``O((C W)^3)``. A call takes ``O(B H (C W)^2)`` in ``H`` sequential steps; an image
    of at most 1,024 numbers is one product with the dense inverse instead.
    """

    def __init__(self, weight: Tensor, direction: str, image_size: tuple[int, int], dilation: int) -> None:
        self.height, self.width = image_size
        self.sign = 1 if direction == "lower" else -1  # the side, in raster order, that a pixel reads
        self.dilation = dilation
        weight_CCkk = weight.to(dtype=torch.float64, device="cpu" if weight.device.type == "mps" else weight.device)
        inverse_RR = self._row_inverse(weight_CCkk, centre_inverse(weight_CCkk, direction))
        couplings_RR = self._row_couplings(weight_CCkk, inverse_RR)
        # Kept transposed, since the rows of a batch are multiplied from the left.
        self.inverse_RR = inverse_RR.T.to(weight).contiguous()
        self.couplings_RR = [coupling_RR.T.to(weight).contiguous() for coupling_RR in couplings_RR]
        self.dense: Tensor | None = None
        size = weight.shape[0] * self.height * self.width
        if size <= DENSE_UNKNOWNS and self.height > 1:
            unit = torch.eye(size, dtype=weight.dtype, device=weight.device)
            self.dense = self.solve(unit.view(size, -1, self.height, self.width)).flatten(1)

    def solve(self, z: Tensor) -> Tensor:
        """Return x, (B, C, H, W), for z, (B, C, H, W)."""
        with full_precision(z.device):
            return self._solve(z)

    def _solve(self, z: Tensor) -> Tensor:
        if self.dense is not None:
            return (z.flatten(1) @ self.dense).view(z.shape)
        num_images, num_channels = z.shape[:2]
        z_HBR = z.permute(2, 0, 1, 3).reshape(self.height, num_images, num_channels * self.width)
        start_HBR = z_HBR @ self.inverse_RR
        rows: dict[int, Tensor] = {}
        for i in range(self.height)[:: -self.sign]:
            x_BR = start_HBR[i]
            for a, coupling_RR in enumerate(self.couplings_RR, start=1):
                before = i + self.sign * self.dilation * a
                if 0 <= before < self.height:
                    x_BR = torch.addmm(x_BR, rows[before], coupling_RR, alpha=-1)
            rows[i] = x_BR
        images = [rows[i].view(num_images, num_channels, self.width) for i in range(self.height)]
        return torch.stack(images, dim=2)

    def _row_inverse(self, weight_CCkk: Tensor, centre_CC: Tensor) -> Tensor:
        """``T^-1``, (R, R): block (j, j') depends on the distance of the columns j and j' alone."""
        middle = weight_CCkk.shape[-1] // 2
        taps = [centre_CC @ weight_CCkk[:, :, middle, middle + self.sign * b] for b in range(1, middle + 1)]
        blocks = [centre_CC]
        for distance in range(1, self.width):
            block_CC = torch.zeros_like(centre_CC)
            for b, tap_CC in enumerate(taps, start=1):
                if distance >= b * self.dilation:
                    block_CC = block_CC - tap_CC @ blocks[distance - b * self.dilation]
            blocks.append(block_CC)
        distances_WW = self.sign * self._column_offsets(weight_CCkk.device)
        return _block_matrix(torch.stack(blocks), torch.where(distances_WW >= 0, distances_WW, self.width))

    def _row_couplings(self, weight_CCkk: Tensor, inverse_RR: Tensor) -> list[Tensor]:
        """``T^-1 S_a``, (R, R), for a = 1, 2, ...: as many as there are rows of taps that reach into the image."""
        kernel_size = weight_CCkk.shape[-1]
        middle = kernel_size // 2
        offsets_WW = self._column_offsets(weight_CCkk.device)
        steps_WW = offsets_WW.div(self.dilation, rounding_mode="floor")
        exists_WW = (steps_WW * self.dilation == offsets_WW) & (steps_WW.abs() <= middle)
        tap_WW = torch.where(exists_WW, steps_WW + middle, kernel_size)
        couplings = []
        for a in range(1, middle + 1):
            if a * self.dilation < self.height:
                taps_kCC = weight_CCkk[:, :, middle + self.sign * a].permute(2, 0, 1)
                couplings.append(inverse_RR @ _block_matrix(taps_kCC, tap_WW))
        return couplings

    def _column_offsets(self, device: torch.device) -> Tensor:
        """Entry (j, j') is j' - j."""
        columns_W = torch.arange(self.width, device=device)
        return columns_W - columns_W[:, None]


def _block_matrix(blocks_nCC: Tensor, index_WW: Tensor) -> Tensor:
    """The (C W, C W) matrix whose block (j, j') is ``blocks[index[j, j']]``; the index n stands for a zero block.

    Rows and columns of the result are sorted by channel, then by column of the image, as in the memory of a row.
    """
    zero_1CC = torch.zeros_like(blocks_nCC[:1])
    matrix_WWCC = torch.cat([blocks_nCC, zero_1CC])[index_WW]
    size = matrix_WWCC.shape[0] * matrix_WWCC.shape[2]
    return matrix_WWCC.permute(2, 0, 3, 1).reshape(size, size)
