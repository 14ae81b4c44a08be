"""The multi-scale flow: one bijection between images and standard normal latents."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.layers import FlowStep, Layer, Logit, Sequential, Squeeze
from flows.models.dequantizers import UniformDequantizer
from flows.models.initialization import initialize_from_data
from flows.models.prepared_inverse import InvertLayer, Observe, PreparedInverse, exact_forward, unobserved
from flows.models.priors import FactorOut, LearnedGaussian, StandardGaussian, Standardize
from flows.numerics import MARGIN, MAX_LOG_SCALE, MAX_SHIFT, at_least_float32, full_precision, per_image_sum

Latents = list[Tensor]


class Flow(nn.Module):
    """A generative flow over uint8 images: exact likelihoods, exact latents, and samples.

    A logit in front (``margin``), then ``L`` levels; at each: squeeze 2x2, ``D`` steps of flow, and, but for the last
    level, half of the channels factored out. The latents are a list of L tensors, standard normal under the model;
    together they have as many dimensions as the image. ``forward`` and ``inverse`` are the bijection on real-valued
    images ``v``; the methods that take uint8 images dequantise and quantise by themselves.

    Args:
        image_shape: (channels, height, width) of the images; height and width divisible by ``2^num_levels``.
        mixing: makes the mixing layer of a step from the number of channels. A parameter ``num_steps`` gets D.
        coupling: makes the coupling layer of a step from the number of channels and ``hidden_channels``; likewise.
        num_levels: L, at least 1.
        num_steps: D, at least 1.
        hidden_channels: width of the coupling networks.
        num_bits: bits per pixel that are modelled, 1 to 8.
        learn_prior: learn the Gaussians of the latents; otherwise N(0, 1), as in the paper's galaxy experiments.
        margin: how far beyond the pixels' range an image may lie, through a :class:`flows.layers.Logit` in front of the
            first level; ``None`` for neither, as in the paper.
        prior_max_log_scale, prior_max_shift: bounds of the Gaussians that a network predicts, positive; ``None``, as in
            the paper's code, for none. See :class:`flows.models.priors.ConditionalGaussian`.

    Raises:
        InputError: an argument out of range, or an image size that the levels cannot halve.

    Reference: sections 2.2 and 5 of the paper, figure 7; Dinh et al., *Real NVP*, section 3.6.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        mixing: Callable[..., Layer],
        coupling: Callable[..., Layer],
        num_levels: int = 3,
        num_steps: int = 32,
        hidden_channels: int = 512,
        num_bits: int = 8,
        learn_prior: bool = True,
        margin: float | None = MARGIN,
        prior_max_log_scale: float | None = MAX_LOG_SCALE,
        prior_max_shift: float | None = MAX_SHIFT,
    ) -> None:
        super().__init__()
        self.image_shape = _checked_shape(image_shape, num_levels)
        if num_steps < 1:
            raise InputError(f"num_steps must be at least 1, not {num_steps}")
        self.dequantizer = UniformDequantizer(num_bits)

        self.front = Sequential() if margin is None else Sequential(Logit(margin))
        self.levels = nn.ModuleList()
        self.factor_outs = nn.ModuleList()
        self.latent_shapes: list[tuple[int, int, int]] = []
        num_channels, height, width = self.image_shape
        for level in range(num_levels):
            num_channels, height, width = 4 * num_channels, height // 2, width // 2
            steps = [
                FlowStep(
                    num_channels,
                    _made(mixing, num_channels, num_steps=num_steps),
                    _made(coupling, num_channels, hidden_channels, num_steps=num_steps),
                )
                for _ in range(num_steps)
            ]
            self.levels.append(Sequential(Squeeze(), *steps))
            if level < num_levels - 1:
                self.factor_outs.append(FactorOut(num_channels, learn_prior, prior_max_log_scale, prior_max_shift))
                num_channels //= 2
            self.latent_shapes.append((num_channels, height, width))
        self._prepared_inverse = PreparedInverse()
        self.top = Standardize(LearnedGaussian(num_channels) if learn_prior else StandardGaussian())

    @property
    def num_dims(self) -> int:
        """D: pixels times channels."""
        return math.prod(self.image_shape)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # -- the bijection on real-valued images ---------------------------------------------------------------------------

    def forward(self, v: Tensor) -> tuple[Latents, Tensor]:
        """``v (B, C, H, W) -> latents, log |det d latents / d v|`` (nats, shape (B,))."""
        latents = []
        h, total = self.front(v)
        for level, factor_out in self._stages():
            h, log_det = level(h)
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

    def log_prob(self, v: Tensor) -> Tensor:
        """Log-density of real-valued images, nats, ``(B, C, H, W) -> (B,)``."""
        latents, log_det = self(v)
        return sum((_standard_normal_log_prob(z) for z in latents), start=log_det)

    # -- on images -----------------------------------------------------------------------------------------------------

    def bits_per_dim(
        self, images: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Upper bound on the bits/dim of uint8 images ``(B, C, H, W) -> (B,)``, for one draw of dequantisation noise.

        Args:
            images: uint8.
            noise: in [0, 1), of the images' shape; drawn from ``generator`` if not given.
            generator: on the flow's device; torch's default generator if not given.
        """
        images = self._check_images(images)
        if noise is None:
            noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=self.dtype)
        v = self.dequantizer.dequantize(images, noise, self.dtype)
        return self.dequantizer.bits_per_dim(self.log_prob(v), self.num_dims)

    def encode(self, images: Tensor, noise: Tensor | float = 0.5) -> Latents:
        """Latents of uint8 images. Without ``noise`` each pixel stands at the centre of its bin: deterministic.

        They are those of :meth:`forward` up to rounding: affine layers run in float64 (:mod:`flows.numerics`).
        """
        v = self.dequantizer.dequantize(self._check_images(images), noise, self.dtype)
        latents = []
        with full_precision(self.device):
            h, _ = self.front(v)
            for level, factor_out in self._stages():
                h = exact_forward(level, h)
                if factor_out is not None:
                    h, z, _ = factor_out(h)
                    latents.append(z)
            z, _ = self.top(h)
        return [*latents, z]

    def decode(self, latents: Latents) -> Tensor:
        """The uint8 images of some latents. ``decode(encode(images))`` is ``images``, at ``num_bits`` bits.

        The inverse runs prepared (:mod:`flows.models.prepared_inverse`), without autograd, TF32 or autocast.

        Raises:
            NonFiniteError: some images overflow; names them and the layers in which they do. :meth:`decode_finite`
                returns the others.
        """
        v, lost = self.decode_values(latents)
        if lost:
            raise NonFiniteError(describe_lost(lost, len(v)))
        return self.dequantizer.quantize(v)

    def decode_finite(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """The uint8 images of some latents, and which of them are finite, ``(B, C, H, W), (B,)``.

        The others, which overflow on the way, are black.
        """
        v, lost = self.decode_values(latents)
        finite = torch.tensor([index not in lost for index in range(len(v))], device=v.device)
        return self.dequantizer.quantize(v) * finite[:, None, None, None], finite

    def decode_values(self, latents: Latents) -> tuple[Tensor, dict[int, str]]:
        """The real-valued images ``v`` that :meth:`decode` rounds to pixels, and where those that overflow do so.

        Returns:
            ``v``, zero for an image that overflows; and for each of these its number and the name of the layer. A layer
            that has no inverse at all loses every image.
        """
        h, lost = self.decode_features(latents)
        return self.front.inverse(h), lost

    def decode_features(self, latents: Latents) -> tuple[Tensor, dict[int, str]]:
        """What :meth:`decode_values` returns without the logit in front, which would hide how large a number is."""
        self._check_latents(latents)
        task = self, [*self.levels, self.top], self._invert, latents
        lost: dict[int, str] = {}
        with torch.inference_mode(), full_precision(self.device):
            try:
                h = self._prepared_inverse(*task)
                has_overflown = not torch.isfinite(h).all()
            except NonFiniteError:  # a layer has no inverse, or refuses what an earlier one gave
                has_overflown = True
            if has_overflown:
                try:
                    h, lost = self._prepared_inverse.finite_part(*task)
                except NonFiniteError as error:
                    h = latents[0].new_zeros(len(latents[0]), *self.image_shape)
                    lost = dict.fromkeys(range(len(h)), str(error))
        return h.clone(), lost  # an ordinary tensor, which may be written to

    def sample(self, num_samples: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw uint8 images ``(num_samples, C, H, W)``.

        Args:
            num_samples: at least 1.
            temperature: standard deviation of the latents, at least 0; below 1 gives likelier, smoother images.
            generator: a CPU generator, so that the same seed gives the same picture on every device.

        Raises:
            InputError: a negative number or temperature.
            NonFiniteError: see :meth:`decode`; ``decode_finite(sample_latents(...))`` returns the others.
        """
        return self.decode(self.sample_latents(num_samples, temperature, generator))

    def sample_latents(
        self, num_samples: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Latents:
        """Standard normal latents times ``temperature``, drawn on the CPU.

        They are drawn image by image, so that n and then m of them are the first n + m.
        """
        if num_samples < 1:
            raise InputError(f"num_samples must be at least 1, not {num_samples}")
        if not 0.0 <= temperature < math.inf:
            raise InputError(f"temperature must be a number of at least 0, not {temperature}")
        images = [torch.randn(self.num_dims, generator=generator) for _ in range(num_samples)]
        noise = torch.stack(images).to(self.device, self.dtype)
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        levels = zip((temperature * noise).split(sizes, dim=1), self.latent_shapes, strict=True)
        return [level.reshape(num_samples, *shape) for level, shape in levels]

    # -- preparation and inspection ------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Data-dependent initialisation of every actnorm from uint8 images; what is initialised stays as it is."""
        images = self._check_images(images)
        noise = torch.rand(images.shape, generator=generator).to(images.device, self.dtype)
        initialize_from_data(self, self.dequantizer.dequantize(images, noise, self.dtype))

    def steps(self) -> list[tuple[str, FlowStep, tuple[int, int, int]]]:
        """Every step of flow with its name in the model and the (channels, height, width) that it works on."""
        found = []
        for name, module in self.named_modules():
            if isinstance(module, FlowStep):
                level = int(name.split(".")[1])
                _, height, width = self.latent_shapes[level]
                found.append((name, module, (len(module.actnorm.bias), height, width)))
        return found

    def _check_images(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images must have the shape (B, {', '.join(map(str, self.image_shape))}), not {tuple(images.shape)}"
            )
        return images.to(self.device)

    def _check_latents(self, latents: Latents) -> None:
        shapes = [tuple(z.shape[1:]) for z in latents]
        if shapes != self.latent_shapes:
            raise InputError(f"latents must have the shapes {self.latent_shapes} behind the batch, not {shapes}")


def _made(factory: Callable[..., Layer], *arguments: int, **offers: Any) -> Layer:
    """What the factory makes; of the offers it gets those that it has a parameter for and no value yet."""
    unset = inspect.signature(factory).parameters.keys() - getattr(factory, "keywords", {}).keys()
    return factory(*arguments, **{name: offers[name] for name in offers.keys() & unset})


def _checked_shape(image_shape: Sequence[int], num_levels: int) -> tuple[int, int, int]:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (channels, height, width), all at least 1, not {tuple(image_shape)}")
    if num_levels < 1:
        raise InputError(f"num_levels must be at least 1, not {num_levels}")
    channels, height, width = image_shape
    if height % 2**num_levels or width % 2**num_levels:
        raise InputError(
            f"an image of {height} x {width} pixels cannot be halved {num_levels} times: choose num_levels so that "
            f"2^num_levels divides both, or another image size"
        )
    return channels, height, width


def describe_lost(lost: dict[int, str], num_images: int) -> str:
    """One line on images that cannot be decoded: how many, which, in which layer, and what to do."""
    images: dict[str, list[str]] = {}
    for index, place in sorted(lost.items()):
        images.setdefault(place, []).append(str(index))
    places = [f"{place} ({_listed('image', indices)})" for place, indices in list(images.items())[:3]]
    others = [] if len(images) <= 3 else [f"{len(images) - 3} other layers"]
    return (
        f"{len(lost)} of {num_images} images overflow on the way to pixels, in {', '.join(places + others)}; "
        f"a lower temperature keeps latents closer to data, and coupling=affine trains a model with bounded scales"
    )


def _listed(noun: str, items: list[str], most: int = 5) -> str:
    """``image 3`` or ``images 3, 5, 8``, cut short."""
    cut = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{noun}{'s' if len(items) > 1 else ''} {', '.join(items[:most])}{cut}"


def _standard_normal_log_prob(z: Tensor) -> Tensor:
    z = at_least_float32(z)
    return -0.5 * (per_image_sum(z.square()) + math.prod(z.shape[1:]) * math.log(2.0 * math.pi))
