"""Looking into a flow: where numbers break, how exactly it inverts, how well conditioned sampling is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flows.errors import NonFiniteError
from flows.layers import Layer
from flows.models.base import DensityModel, Latents
from flows.randomness import Stream, generator_for

STEP = 1e-3
"""Root mean square of the displacement of a latent, from which a gain is measured."""


@torch.no_grad()
def first_non_finite(model: nn.Module, *inputs: Tensor) -> str:
    """Where the first NaN or infinity of a forward pass appears, in words.

    Modules are looked at in the order in which they finish; innermost first, so that the name is as exact as can be.
    Parameters that are not finite themselves are named rather than the activations that they spoil.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if not found and any(not torch.isfinite(tensor).all() for tensor in _floating_tensors(output)):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return f"the output of layer {found[0]}" if found else "the log-density, after every layer's output was finite"


def _floating_tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _floating_tensors(item)]
    return []


@torch.no_grad()
def round_trip_error(flow: DensityModel, images: Tensor) -> float:
    """Largest ``|inverse(forward(v)) - v|`` over some uint8 images, in grey levels of ``num_bits``.

    Both directions run exactly as in :meth:`flows.Flow.encode` and :meth:`flows.Flow.decode`. Below 0.5 the decoded
    pixels equal the originals. Infinite where something overflows or has no inverse.
    """
    dequantizer = flow.dequantizer
    v = dequantizer.centre(images.to(flow.device), flow.dtype)
    again, lost = flow.decode_values(flow.encode(images))
    return math.inf if lost else _or_infinite((again - v).abs().max() * dequantizer.num_bins)


def unusual_images(shape: tuple[int, int, int], num_noise: int = 4) -> Tensor:
    """Images unlike any data, uint8: uniform noise, black, white, a checkerboard, one bright pixel on black.

    Args:
        shape: (channels, height, width).
        num_noise: number of images of noise.

    Returns:
        ``(num_noise + 4, C, H, W)``, the same at every call.
    """
    _, height, width = shape
    generator = generator_for(Stream.DIAGNOSTICS, 0)
    noise = torch.randint(0, 256, (num_noise, *shape), generator=generator, dtype=torch.uint8)
    black = torch.zeros(1, *shape, dtype=torch.uint8)
    squares = (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 255
    pixel = black.clone()
    pixel[..., height // 2, width // 2] = 255
    return torch.cat([noise, black, black + 255, squares.to(torch.uint8).expand_as(black), pixel])


@dataclass(frozen=True)
class SampleHealth:
    """How the inverse of a flow behaves on some of its own samples.

    Attributes:
        not_finite: share of the samples that overflow.
        outside: share of the others' values outside of [-1/2, 1/2], which decoding clamps.
        beyond: share of the others that hold a value outside of [-1, 1].
        largest: largest absolute value before the logit in front; infinite if a sample overflows.
        gain: see :func:`inverse_gain`, around these samples.
    """

    not_finite: float
    outside: float
    beyond: float
    largest: float
    gain: float


@torch.no_grad()
def sample_health(
    flow: DensityModel, num_samples: int, temperature: float = 1.0, batch_size: int = 256
) -> SampleHealth:
    """Look at ``num_samples`` samples, the same latents at every call.

    Cost: three inverses for each sample.
    """
    generator = generator_for(Stream.DIAGNOSTICS, 1)
    num_lost = num_outside = num_beyond = num_values = 0
    largest, gains = 0.0, []
    for start in range(0, num_samples, batch_size):
        latents = flow.sample_latents(min(batch_size, num_samples - start), temperature, generator)
        h, lost = flow.decode_features(latents)
        finite = [index for index in range(len(h)) if index not in lost]
        sizes = flow.finish(h[finite]).abs().flatten(1)
        num_lost += len(lost)
        num_outside += int((sizes > 0.5).sum())
        num_beyond += int((sizes > 1.0).any(dim=1).sum())
        num_values += sizes.numel()
        largest = max(largest, float(h.abs().max()))
        gains.append(math.inf if lost else inverse_gain(flow, latents, h))
    return SampleHealth(
        not_finite=num_lost / num_samples,
        outside=num_outside / max(num_values, 1),
        beyond=num_beyond / max(num_samples - num_lost, 1),
        largest=math.inf if num_lost else largest,
        gain=max(gains),
    )


def count_not_finite(flow: DensityModel, num_samples: int, temperature: float = 1.0, batch_size: int = 256) -> int:
    """How many of ``num_samples`` samples overflow; the latents are those of :func:`sample_health`."""
    generator = generator_for(Stream.DIAGNOSTICS, 1)
    sizes = [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]
    return sum(len(flow.decode_features(flow.sample_latents(size, temperature, generator))[1]) for size in sizes)


@torch.no_grad()
def inverse_gain(flow: DensityModel, latents: Latents, h: Tensor | None = None) -> float:
    """How much the whole inverse amplifies a change of a latent, at most, over some latents and two directions.

    ``max |inverse(z + d) - inverse(z)| / |d|`` in the Euclidean norm, where ``d`` runs over the fixed directions. It
    is a lower bound of the inverse's Lipschitz constant. Infinite where the inverse overflows. The logit in front does
    not take part: it never amplifies, and would hide what is large.

    Args:
        flow: the model.
        latents: around which the gain is measured.
        h: what they decode to, if it is known (:meth:`flows.Flow.decode_features`).

    Reference: Behrmann et al., *Understanding and Mitigating Exploding Inverses*, AISTATS 2021, section 4.
    """
    if h is None:
        h, lost = flow.decode_features(latents)
        if lost:
            return math.inf
    gain = 0.0
    for number in range(2):
        generator = generator_for(Stream.DIAGNOSTICS, 2, number)
        directions = [STEP * level.to(flow.device) for level in flow.sample_latents(1, 1.0, generator)]
        length = math.sqrt(sum(float(level.double().square().sum()) for level in directions))
        moved, lost = flow.decode_features([z + d for z, d in zip(latents, directions, strict=True)])
        if lost:
            return math.inf
        gain = max(gain, _or_infinite((moved - h).double().flatten(1).norm(dim=1).max() / length))
    return gain


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, in float64: finite whenever every gradient is."""
    return torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm()


@torch.no_grad()
def layer_gain(layer: Layer, shape: tuple[int, int, int]) -> float:
    """Largest entry of the inverse's answer to unit impulses: how much sampling may amplify what reaches this layer.

    It looks at one layer; a composition of layers with small gains can still explode, see :func:`inverse_gain`.

    An impulse in every channel is sent from the two opposite corners, which autoregressive inverses propagate
    furthest, and from the middle. About 1 for an orthogonal layer; above ``1e5`` float32 cannot invert exactly.
    For a layer that is not linear this is its gain around zero. Infinite where the inverse overflows or there is none.

    Args:
        layer: any layer that keeps the shape.
        shape: (channels, height, width) of its input.
    """
    channels, height, width = shape
    places = {(0, 0), (height - 1, width - 1), (height // 2, width // 2)}
    parameter = next(layer.parameters(), torch.zeros(()))
    impulses = torch.zeros(len(places), channels, *shape, device=parameter.device, dtype=parameter.dtype)
    index = torch.arange(channels)
    for batch, (row, column) in zip(impulses, sorted(places), strict=True):
        batch[index, index, row, column] = 1.0
    try:
        at_rest = layer.inverse(torch.zeros_like(impulses[0, :1]))
        return _or_infinite((layer.inverse(impulses.flatten(0, 1)) - at_rest).abs().max())
    except NonFiniteError:
        return math.inf


def _or_infinite(error: Tensor) -> float:
    """A NaN as infinity, which no maximum over layers, images or processes passes over."""
    return float(error.nan_to_num(math.inf, posinf=math.inf))


def mixing_gains(flow: DensityModel) -> dict[str, float]:
    """:func:`layer_gain` of each mixing layer, by its name; empty for a model that has none."""
    return {name: layer_gain(layer, shape) for name, layer, shape in flow.mixing_layers()}


def count_parameters(model: nn.Module) -> int:
    """Number of free parameters. Entries that a mask holds at zero do not count, as in the paper.

    A parameter ``p`` of a module is masked if the module has a buffer ``p_mask``.
    """
    total = 0
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, parameter in module.named_parameters(recurse=False):
            mask = buffers.get(f"{name}_mask")
            total += parameter.numel() if mask is None else int(mask.sum())
    return total
