"""The compiled backend: substitution in C, as fast as the convolution itself."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.kernels import extension, num_threads, why_not_compiled
from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.checks import non_finite_image
from flows.solvers.row_blocks import centre_inverse


@final
class CompiledSolver(AutoregressiveConvSolver):
    """Substitution pixel by pixel in a C kernel, vectorised over images or channels, threads over the batch.

    Uses as many threads as ``torch.get_num_threads()`` says (one in a forked process, which inherits a thread pool
    without its threads), and releases the GIL. Contiguous and channels-last images are read and written as they are;
    any other layout is copied first.

    Raises:
        InputError: the extension is missing, the device is not a CPU; and as in :class:`AutoregressiveConvSolver`.
        MemoryError: no room for the working copy of one tile of images per thread.

    Cost: ``2 B H W C^2 t`` operations for ``t`` taps that are not zero, as in the convolution itself.
    """

    name = "compiled"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return why_not_compiled(device)

    def _prepare(self, weight: Tensor) -> None:
        middle = self.kernel_size // 2
        weight64 = weight.double()
        inverse = centre_inverse(weight64, self.direction)
        taps = (weight != 0).flatten(0, 1).any(dim=0).nonzero().tolist()
        taps.remove([middle, middle])
        # The pixel's own row last: what was solved just before is then needed as late as possible.
        taps.sort(key=lambda tap: tap[0] == middle)
        offsets, matrices = [(0, 0)], [inverse]
        for i, j in taps:
            rows, columns = (i - middle) * self.dilation, (j - middle) * self.dilation
            if abs(rows) < self.image_size[0] and abs(columns) < self.image_size[1]:
                offsets.append((rows, columns))
                matrices.append(-inverse @ weight64[:, :, i, j])
        stacked = torch.stack(matrices).to(weight.dtype)
        self._plan = extension.Plan(
            stacked,
            offsets,
            self.direction == "lower",
            self.num_channels,
            *self.image_size,
            extension.instruction_sets()[-1],
        )

    def _solve(self, z: Tensor) -> Tensor:
        z, channels_last = z.resolve_neg(), False
        if not z.is_contiguous():
            channels_last = z.is_contiguous(memory_format=torch.channels_last)
            z = z if channels_last else z.contiguous()
        x = torch.empty_like(z)
        bad = self._plan.solve(z, x, channels_last, num_threads())
        if bad >= 0:
            raise non_finite_image(bad)
        return x
