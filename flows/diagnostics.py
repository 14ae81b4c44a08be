"""Looking into a flow: where numbers break, how exactly it inverts, how well conditioned sampling is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.layers import Layer
from flows.model import Flow

NOT_INVERTIBLE = (NonFiniteError, torch.linalg.LinAlgError, InputError)
"""What inverses raise: something overflows; a matrix is singular; a filter has a zero or a NaN on its diagonal."""


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
def round_trip_error(flow: Flow, images: Tensor) -> float:
    """Largest ``|inverse(forward(v)) - v|`` over some uint8 images, in grey levels of ``num_bits``.

    Below 0.5 the decoded pixels equal the originals. Infinite where something overflows or has no inverse.
    """
    dequantizer = flow.dequantizer
    v = dequantizer.dequantize(images.to(flow.device), 0.5, flow.dtype)
    latents, _ = flow(v)
    try:
        return _or_infinite((flow.inverse(latents) - v).abs().max() * dequantizer.num_levels)
    except NOT_INVERTIBLE:
        return math.inf


@torch.no_grad()
def inverse_gain(layer: Layer, shape: tuple[int, int, int]) -> float:
    """Largest entry of the inverse's answer to unit impulses: how much sampling may amplify what reaches this layer.

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
    except NOT_INVERTIBLE:
        return math.inf


def _or_infinite(error: Tensor) -> float:
    """A NaN as infinity, which no maximum over layers, images or processes passes over."""
    return float(error.nan_to_num(math.inf, posinf=math.inf))


def mixing_gains(flow: Flow) -> dict[str, float]:
    """:func:`inverse_gain` of the mixing layer of every step, by the step's name."""
    return {name: inverse_gain(step.mixing, shape) for name, step, shape in flow.steps()}


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
