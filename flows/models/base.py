"""What every model of images promises, and what comes with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.layers import Layer
from flows.models.dequantizers import Dequantizer
from flows.models.initialization import initialize_from_data
from flows.numerics import at_least_float32, chosen_precision, full_precision, per_image_sum
from flows.randomness import draw_noise

Latents = list[Tensor]


class DensityModel(nn.Module, ABC):
    """A density of uint8 images: a dequantiser, and a bijection between real-valued images and normal latents.

    A subclass gives :meth:`forward`, :meth:`inverse` and the shapes of its latents, and gets bits/dim, exact encoding
    and decoding, samples and initialisation. The latents are a list of tensors, standard normal under the model;
    together they have as many dimensions as the image.

    Args:
        image_shape: (channels, height, width) of the images.
        dequantizer: turns their pixels into reals and back.

    Attributes:
        latent_shapes: (channels, height, width) of each latent; a subclass sets it.
    """

    latent_shapes: list[tuple[int, int, int]]

    def __init__(self, image_shape: Sequence[int], dequantizer: Dequantizer) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            shape = tuple(image_shape)
            raise InputError(f"image_shape must be (channels, height, width), all at least 1, not {shape}")
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.dequantizer = dequantizer

    @abstractmethod
    def forward(self, v: Tensor) -> tuple[Latents, Tensor]:
        """``v (B, C, H, W) -> latents, log |det d latents / d v|`` (nats, shape (B,))."""

    @abstractmethod
    def inverse(self, latents: Latents) -> Tensor:
        """``latents -> v (B, C, H, W)``."""

    # -- what a subclass may do better ---------------------------------------------------------------------------------

    def encode_exactly(self, v: Tensor) -> Latents:
        """The latents of :meth:`forward`, as exact as can be; runs without TF32 and autocast."""
        return self(v)[0]

    def decode_features(self, latents: Latents) -> tuple[Tensor, dict[int, str]]:
        """The inverse up to :meth:`finish`, and for each image that overflows the name of the place where it does."""
        with torch.inference_mode(), full_precision(self.device):
            h = self.inverse(latents)
        finite = torch.isfinite(h).flatten(1).all(dim=1)
        lost = dict.fromkeys((~finite).nonzero().flatten().tolist(), "the inverse")
        return torch.where(finite[:, None, None, None], h, 0.0), lost

    def finish(self, h: Tensor) -> Tensor:
        """From the features of :meth:`decode_features` to ``v``: what never overflows, and hides how large they are."""
        return h

    def compile_parts(self, **options: Any) -> None:
        """Have ``torch.compile`` fuse what a training step runs; the names of the state dict stay.

        Args:
            options: those of ``torch.compile``.
        """
        self.compile(**options)

    def mixing_layers(self) -> list[tuple[str, Layer, tuple[int, int, int]]]:
        """Each mixing layer with its name and the (channels, height, width) that it works on; none by default."""
        return []

    # -- sizes ---------------------------------------------------------------------------------------------------------

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

    # -- densities -----------------------------------------------------------------------------------------------------

    def log_prob(self, v: Tensor) -> Tensor:
        """Log-density of real-valued images, nats, ``(B, C, H, W) -> (B,)``."""
        with chosen_precision(self.device):
            latents, log_det = self(v)
            return sum((_standard_normal_log_prob(z) for z in latents), start=log_det)

    def bits_per_dim(
        self, images: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Upper bound on the bits/dim of uint8 images ``(B, C, H, W) -> (B,)``, for one draw of dequantisation noise.

        ``n + (log q(u | x) - log p(v)) / (D log 2)``, see :mod:`flows.models.dequantizers`. Neither TF32 nor autocast
        changes it; :func:`flows.numerics.in_precision` does.

        Args:
            images: uint8, a tensor or an array.
            noise: of the images' shape and the dequantiser's kind; drawn from ``generator`` if not given.
            generator: on the model's device; torch's default generator if not given.
        """
        images = self._check_images(images)
        if noise is None:
            kind = self.dequantizer.noise
            noise = draw_noise(kind, images.shape, generator, device=images.device, dtype=self.dtype)
        with chosen_precision(self.device):
            v, log_q = self.dequantizer(images, noise.to(self.dtype))
            nats = log_q - self.log_prob(v)
        return self.dequantizer.num_bits + nats / (self.num_dims * math.log(2.0))

    # -- images and latents --------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Latents:
        """Latents of uint8 images, each pixel at the centre of its bin: deterministic.

        They are those of :meth:`forward` up to rounding: affine layers run in float64 (:mod:`flows.numerics`).
        """
        v = self.dequantizer.centre(self._check_images(images), self.dtype)
        with full_precision(self.device):
            return self.encode_exactly(v)

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
            ``v``, with the features of an image that overflows taken for zero; and for each of these its number and the
            name of the layer. A layer that has no inverse at all loses every image.
        """
        self._check_latents(latents)
        h, lost = self.decode_features(latents)
        return self.finish(h), lost

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

    @torch.no_grad()
    def initialize(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Data-dependent initialisation of every actnorm from uint8 images; what is initialised stays as it is."""
        images = self._check_images(images)
        if not len(images):
            raise InputError("initialisation needs at least one image")
        noise = draw_noise(self.dequantizer.noise, images.shape, generator).to(images.device, self.dtype)
        with full_precision(self.device):
            initialize_from_data(self, self.dequantizer(images, noise)[0])

    def _check_images(self, images: Tensor) -> Tensor:
        self._check_type()
        images = torch.as_tensor(images)
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images must have the shape (B, {', '.join(map(str, self.image_shape))}), not {tuple(images.shape)}"
            )
        return images.to(self.device)

    def _check_type(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"a model computes likelihoods and inverses in float32 or float64, not in {self.dtype}: call float() "
                f"on it; flows.numerics.in_precision('bf16', device) runs its networks alone in half precision"
            )

    def _check_latents(self, latents: Latents) -> None:
        self._check_type()
        shapes = [tuple(z.shape[1:]) for z in latents]
        if shapes != self.latent_shapes:
            raise InputError(f"latents must have the shapes (B, ...) with ... in {self.latent_shapes}, not in {shapes}")


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
