"""Draw the paper's figures 1, 4 and 5 from this project's layers as they are: ``python docs/draw_layers.py``.

White is an exact zero; darker means more paths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from flows.layers import AutoregressiveConv2d, EmergingConv2d, Layer, PeriodicConv2d
from flows.layers.masks import Direction, MaskShape
from flows.reporting.figures import STYLE

HERE = Path(__file__).resolve().parent


def visible(make: Callable[[], Layer], seed: int = 0) -> Layer:
    """A layer whose weights are all of about the same size, so that none of what it can see is too faint to draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.0)
    return layer


def receptive_field(layer: Layer, num_channels: int, size: int, pixel: tuple[int, int] | None = None) -> Tensor:
    """How strongly one output pixel depends on every input pixel, by autograd: ``(size, size)``, exact zeros included.

    Args:
        layer: any.
        num_channels: that it takes.
        size: side of the image.
        pixel: row and column of the output pixel; the centre if not given.
    """
    row, column = pixel or (size // 2, size // 2)
    x = torch.zeros(1, num_channels, size, size, requires_grad=True)
    z, _ = layer(x)
    gradients = [
        torch.autograd.grad(z[0, channel, row, column], x, retain_graph=True)[0].abs() for channel in range(len(z[0]))
    ]
    return torch.stack(gradients).sum(dim=(0, 1, 2))


@torch.no_grad()
def equivalent_matrix(layer: Layer, num_channels: int, size: int) -> Tensor:
    """The matrix that an affine layer is, from its answers to impulses; ``(N, N)`` with ``N = size^2 num_channels``.

    Rows and columns go pixel by pixel in reading order, the channels of a pixel beside each other.
    """
    num_dims = num_channels * size * size
    impulses = torch.eye(num_dims).reshape(num_dims, size, size, num_channels).permute(0, 3, 1, 2)
    answers, _ = layer(impulses)
    at_zero, _ = layer(torch.zeros(1, num_channels, size, size))
    return (answers - at_zero).permute(0, 2, 3, 1).reshape(num_dims, num_dims).T


def tap_mask(mask: Tensor) -> Tensor:
    """A ``(C, C, k, k)`` filter mask as one picture ``(k C, k C)``: at each tap its C x C block, output by input."""
    num_channels, _, kernel_size, _ = mask.shape
    return mask.permute(2, 0, 3, 1).reshape(kernel_size * num_channels, kernel_size * num_channels)


def filters_and_matrices() -> Canvas:
    """The paper's figure 1: what the centre of a 5 x 5 image sees of the input; below, the layer as a matrix."""
    emerging = visible(partial(EmergingConv2d, 1))
    periodic = visible(partial(PeriodicConv2d, 1))
    assert isinstance(emerging, EmergingConv2d)
    layers: dict[str, Layer] = {
        "autoregressive, first": emerging.lower,
        "autoregressive, second": emerging.upper,
        "emerging: both chained": emerging,
        "periodic": periodic,
    }
    canvas = Canvas(figsize=(10, 5.2), layout="constrained")
    for number, (title, layer) in enumerate(layers.items()):
        axes = canvas.add_subplot(2, len(layers), number + 1)
        _draw(axes, receptive_field(layer, 1, 5), title, centre=True)
        axes = canvas.add_subplot(2, len(layers), len(layers) + number + 1)
        _draw(axes, equivalent_matrix(layer, 1, 5).abs(), "as a 25 x 25 matrix")
    return canvas


def masks() -> Canvas:
    """The paper's figure 4: 3 x 3 taps of 3 x 3 channels each; beside each, the layer as a triangular matrix."""
    num_channels = 3
    canvas = Canvas(figsize=(10, 5.4), layout="constrained")
    shapes: tuple[MaskShape, ...] = ("square", "raster")
    directions: tuple[Direction, ...] = ("lower", "upper")
    for row, shape in enumerate(shapes):
        for column, direction in enumerate(directions):
            layer = visible(partial(AutoregressiveConv2d, num_channels, direction=direction, mask=shape, bias=False))
            assert isinstance(layer, AutoregressiveConv2d)
            axes = canvas.add_subplot(2, 4, 4 * row + 2 * column + 1)
            _draw(axes, tap_mask(layer.weight_mask), f"{shape}, {direction}: the mask", blocks=num_channels)
            axes = canvas.add_subplot(2, 4, 4 * row + 2 * column + 2)
            _draw(axes, equivalent_matrix(layer, num_channels, 3).abs(), "its matrix on 3 x 3 pixels")
    return canvas


def chained_receptive_fields() -> Canvas:
    """The paper's figure 5: receptive fields of two chained convolutions; square masks emerge as exactly a 3 x 3."""
    kinds: dict[str, dict] = {
        "raster": {"mask": "raster"},
        "square": {"mask": "square"},
        "square, dilation 2": {"mask": "square", "dilation": 2},
    }
    canvas = Canvas(figsize=(10, 6.4), layout="constrained")
    for row, (title, options) in enumerate(kinds.items()):
        emerging = visible(partial(EmergingConv2d, 1, **options))
        assert isinstance(emerging, EmergingConv2d)
        chain = {"the first": emerging.lower, "the second": emerging.upper, "chained": emerging}
        for column, (part, layer) in enumerate(chain.items()):
            axes = canvas.add_subplot(len(kinds), 3, 3 * row + column + 1)
            _draw(axes, receptive_field(layer, 1, 7), f"{title}: {part}", centre=True)
    return canvas


def _draw(axes: Axes, values: Tensor, title: str, *, centre: bool = False, blocks: int | None = None) -> None:
    """Show non-negative numbers as shades on white; exact zeros, and only they, are white."""
    nothing = torch.full((), torch.nan)  # is not drawn
    shades = torch.where(values > 0, 0.25 + 0.75 * values / values.max().clamp(min=1e-12), nothing)
    height, width = values.shape
    axes.imshow(shades.numpy(), cmap="Blues", vmin=0.0, vmax=1.15, interpolation="nearest")
    axes.set_title(title)
    axes.spines[:].set_visible(True)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_xticks(np.arange(0.5, width - 1), minor=True)
    axes.set_yticks(np.arange(0.5, height - 1), minor=True)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(which="minor", color="#c9d0d8", linewidth=0.4, visible=True)
    if blocks:
        for place in range(blocks, width, blocks):
            axes.axhline(place - 0.5, color="#4a5360", linewidth=1.2)
            axes.axvline(place - 0.5, color="#4a5360", linewidth=1.2)
    if centre:
        axes.plot(width // 2, height // 2, "o", color="#d55e00", markersize=4)


def main() -> None:
    """Write the three figures beside this file."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        for name, draw in (("filters", filters_and_matrices), ("masks", masks), ("fields", chained_receptive_fields)):
            draw().savefig(HERE / f"layers_{name}.png", dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
