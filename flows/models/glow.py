"""The multi-scale flow: one bijection between images and standard normal latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.layers import FlowStep, Layer, Logit, Sequential, Squeeze
from flows.layers.factories import make
from flows.models.base import DensityModel, Latents
from flows.models.dequantizers import Dequantizer, UniformDequantizer
from flows.models.memory import Memory, require_memory, run
from flows.models.prepared_inverse import InvertLayer, Observe, PreparedInverse, exact_forward, unobserved
from flows.models.priors import LEARNED, FactorOut, Prior, Standardize
from flows.numerics import MARGIN, full_precision

MAX_STEPS = 10_000
"""Of a level. The paper has 32; a number that was meant for something else would build layers until memory is full."""


class Flow(DensityModel):
    """A multi-scale flow: exact likelihoods, exact latents, and samples.

    A logit in front (``margin``), then ``L`` levels; at each: squeeze 2x2, ``D`` steps of flow, and, but for the last
    level, half of the channels factored out. The latents are a list of L tensors.

    Args:
        image_shape: (channels, height, width) of the images; height and width divisible by ``2^num_levels``.
        mixing: makes the mixing layer of a step from the number of channels. Parameters ``num_steps`` and
            ``image_size`` get D and the level's (height, width).
        coupling: makes the coupling layer of a step from the number of channels and ``hidden_channels``; likewise.
        num_levels: L, at least 1.
        num_steps: D, from 1 to :data:`MAX_STEPS`.
        hidden_channels: width of the coupling networks.
        prior: makes the Gaussians of the latents.
        dequantizer: makes what turns pixels into reals; a parameter ``image_shape`` gets that.
        margin: how far beyond the pixels' range an image may lie, through a :class:`flows.layers.Logit` in front of the
            first level; ``None`` for neither, as in the paper.
        memory: what is kept for the backward pass, :mod:`flows.models.memory`; may be changed at any time.

    Raises:
        InputError: an argument out of range, or an image size that the levels cannot halve.

    Reference: sections 2.2 and 5 of the paper, figure 7; Dinh et al., *Real NVP*, section 3.6.

    Example:
        >>> import torch
        >>> from flows import Flow
        >>> from flows.layers import AffineCoupling, EmergingConv2d
        >>> flow = Flow((3, 16, 16), EmergingConv2d, AffineCoupling, num_levels=2, num_steps=1, hidden_channels=8)
        >>> images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
        >>> flow.initialize(images)
        >>> flow.bits_per_dim(images).shape, [tuple(z.shape) for z in flow.encode(images)]
        (torch.Size([4]), [(4, 6, 8, 8), (4, 24, 4, 4)])
        >>> torch.equal(flow.decode(flow.encode(images)), images)
        True
        >>> flow.sample(2, temperature=0.7, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        mixing: Callable[..., Layer],
        coupling: Callable[..., Layer],
        num_levels: int = 3,
        num_steps: int = 32,
        hidden_channels: int = 512,
        *,
        prior: Prior = LEARNED,
        dequantizer: Callable[..., Dequantizer] = UniformDequantizer,
        margin: float | None = MARGIN,
        memory: Memory = "store",
    ) -> None:
        super().__init__(image_shape, make(dequantizer, image_shape=tuple(image_shape)))
        _require_levels(self.image_shape, num_levels)
        if not 1 <= num_steps <= MAX_STEPS:
            raise InputError(f"num_steps must be from 1 to {MAX_STEPS}, not {num_steps}")
        require_memory(memory)
        self.memory = memory

        self.front = Sequential() if margin is None else Sequential(Logit(margin))
        self.levels = nn.ModuleList()
        self.factor_outs = nn.ModuleList()
        self.latent_shapes = []
        num_channels, height, width = self.image_shape
        for level in range(num_levels):
            num_channels, height, width = 4 * num_channels, height // 2, width // 2
            offers = {"num_steps": num_steps, "image_size": (height, width)}
            steps = [
                FlowStep(
                    num_channels,
                    make(mixing, num_channels, **offers),
                    make(coupling, num_channels, hidden_channels, **offers),
                )
                for _ in range(num_steps)
            ]
            self.levels.append(Sequential(Squeeze(), *steps))
            if level < num_levels - 1:
                self.factor_outs.append(FactorOut(num_channels, prior))
                num_channels //= 2
            self.latent_shapes.append((num_channels, height, width))
        self._prepared_inverse = PreparedInverse()
        self.top = Standardize(prior.top(num_channels))

    # -- the bijection on real-valued images ---------------------------------------------------------------------------

    def forward(self, v: Tensor) -> tuple[Latents, Tensor]:
        """``v (B, C, H, W) -> latents, log |det d latents / d v|`` (nats, shape (B,))."""
        latents = []
        h, total = self.front(v)
        for level, factor_out in self._stages():
            h, log_det = run(level, h, self.memory)
            total = total + log_det
            if factor_out is not None:
                h, z, log_det = factor_out(h)
                latents.append(z)
                total = total + log_det
        z, log_det = self.top(h)
        return [*latents, z], total + log_det

    def inverse(self, latents: Latents) -> Tensor:
        """``latents -> v (B, C, H, W)``."""
        self._check_latents(latents)
        return self.front.inverse(self._invert(latents, lambda layer, z: layer.inverse(z), unobserved))

    def _invert(self, latents: Latents, invert_layer: InvertLayer, observe: Observe) -> Tensor:
        """All but the logit in front."""
        h = invert_layer(self.top, latents[-1])
        for (level, factor_out), z in reversed(list(zip(self._stages(), latents, strict=True))):
            h = invert_layer(level, h if factor_out is None else observe(factor_out, factor_out.inverse(h, z)))
        return h

    def _stages(self) -> list[tuple[Sequential, FactorOut | None]]:
        """Each level with what factors out behind it; nothing does behind the last."""
        return list(zip(self.levels, [*self.factor_outs, None], strict=True))  # type: ignore[arg-type]

    def encode_exactly(self, v: Tensor) -> Latents:
        latents = []
        h, _ = self.front(v)
        for level, factor_out in self._stages():
            h = exact_forward(level, h)
            if factor_out is not None:
                h, z, _ = factor_out(h)
                latents.append(z)
        z, _ = self.top(h)
        return [*latents, z]

    def finish(self, h: Tensor) -> Tensor:
        return self.front.inverse(h)

    def decode_features(self, latents: Latents) -> tuple[Tensor, dict[int, str]]:
        task = self, [*self.levels, self.top], self._invert, latents
        lost: dict[int, str] = {}
        with torch.inference_mode(), full_precision(self.device):
            try:
                h = self._prepared_inverse(*task)
                has_overflowed = not torch.isfinite(h).all()
            except NonFiniteError:  # a layer has no inverse, or refuses what an earlier one gave
                has_overflowed = True
            if has_overflowed:
                try:
                    h, lost = self._prepared_inverse.finite_part(*task)
                except NonFiniteError as error:
                    h = latents[0].new_zeros(len(latents[0]), *self.image_shape)
                    lost = dict.fromkeys(range(len(h)), str(error))
        return h.clone(), lost  # an ordinary tensor, which may be written to

    def steps(self) -> list[tuple[str, FlowStep, tuple[int, int, int]]]:
        """Every step of flow with its name in the model and the (channels, height, width) that it works on."""
        found = []
        for number, (level, (_, height, width)) in enumerate(zip(self.levels, self.latent_shapes, strict=True)):
            for place, step in enumerate(level):  # type: ignore[arg-type,var-annotated]
                if isinstance(step, FlowStep):
                    shape = (len(step.actnorm.bias), height, width)
                    found.append((f"levels.{number}.layers.{place}", step, shape))
        return found

    def compile_parts(self, **options: Any) -> None:
        """Each step of flow by itself: those of one level share a compilation, and the whole would take minutes."""
        # One compilation for each size of images: inductor cannot compile a step for all sizes at once.
        options = {"dynamic": False, "recompile_limit": 4 * (len(self.levels) + 1), **options}
        for _, step, _ in self.steps():
            step.compile(**options)

    def mixing_layers(self) -> list[tuple[str, Layer, tuple[int, int, int]]]:
        return [(name, step.mixing, shape) for name, step, shape in self.steps()]


def _require_levels(image_shape: tuple[int, int, int], num_levels: int) -> None:
    if num_levels < 1:
        raise InputError(f"num_levels must be at least 1, not {num_levels}")
    _, height, width = image_shape
    sides = height | width
    if (sides & -sides).bit_length() <= num_levels:  # the largest power of two that divides both
        raise InputError(
            f"an image of {height} x {width} pixels cannot be halved {num_levels} times: choose num_levels so that "
            f"2^num_levels divides both, or another image size"
        )
