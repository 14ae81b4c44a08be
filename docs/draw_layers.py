"""Draw the paper's figures 1 to 7 from this project's layers as they are: ``python docs/draw_layers.py``.

White is an exact zero; darker means more paths. docs/FIGURES.md shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from torch import Tensor, nn
from torch.nn.functional import conv2d

from flows import Flow
from flows.layers import AffineCoupling, AutoregressiveConv2d, EmergingConv2d, Layer, PeriodicConv2d
from flows.layers.masks import Direction, MaskShape, autoregressive_mask
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
def equivalent_matrix(layer: Callable[[Tensor], tuple[Tensor, Any]], num_channels: int, size: int) -> Tensor:
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


def convolutions() -> Canvas:
    """The paper's figures 2 and 3: plain convolutions of one and of two channels, and the matrices that they are.

    Each entry of a matrix has the colour of the filter's entry that stands there.
    """
    canvas = Canvas(figsize=(10, 2.8), layout="constrained")
    for column, (num_channels, size) in enumerate(((1, 5), (2, 4))):
        numbers = torch.arange(1, 1 + 9 * num_channels**2).reshape(num_channels, num_channels, 3, 3)
        layer = partial(_convolve, numbers.float())
        matrix = equivalent_matrix(layer, num_channels, size)
        taps = torch.tensor(matplotlib.colormaps["tab10"].colors[:9])
        paleness = torch.linspace(0, 0.7, num_channels**2)[:, None, None]
        colors = torch.cat([torch.ones(1, 3), (taps + paleness * (1 - taps)).reshape(-1, 3)])
        words = "one channel" if num_channels == 1 else "two channels"
        blocks = num_channels if num_channels > 1 else None
        axes = canvas.add_subplot(1, 4, 2 * column + 1)
        _draw(axes, tap_mask(numbers), f"3 x 3 filter, {words}", blocks=blocks, colors=colors)
        axes = canvas.add_subplot(1, 4, 2 * column + 2)
        _draw(axes, matrix, f"its matrix on {size} x {size} pixels", blocks=blocks, colors=colors)
    return canvas


def _convolve(weight: Tensor, x: Tensor) -> tuple[Tensor, None]:
    return conv2d(x, weight, padding=1), None


def masks() -> Canvas:
    """The paper's figure 4: 3 x 3 taps of 3 x 3 channels each; beside each, the layer as a triangular matrix."""
    num_channels = 3
    canvas = Canvas(figsize=(10, 5.4), layout="constrained")
    shapes: tuple[MaskShape, ...] = ("square", "raster")
    directions: tuple[Direction, ...] = ("lower", "upper")
    for row, shape in enumerate(shapes):
        for column, direction in enumerate(directions):
            layer = visible(partial(AutoregressiveConv2d, num_channels, direction=direction, mask=shape, bias=False))
            axes = canvas.add_subplot(2, 4, 4 * row + 2 * column + 1)
            mask = autoregressive_mask(num_channels, 3, direction, shape)
            _draw(axes, tap_mask(mask), f"{shape}, {direction}: the mask", blocks=num_channels)
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


def frequencies() -> Canvas:
    """The paper's figure 6: in the frequency domain a periodic convolution is a C x C matrix for each frequency."""
    num_channels, size = 3, 4
    layer = visible(partial(PeriodicConv2d, num_channels))
    assert isinstance(layer, PeriodicConv2d)
    matrix = equivalent_matrix(layer, num_channels, size).to(torch.complex64)
    fourier = torch.fft.fft2(torch.eye(size**2).reshape(-1, size, size)).reshape(size**2, size**2) / size
    fourier = torch.kron(fourier, torch.eye(num_channels))
    blocks = (fourier @ matrix @ fourier.mH).abs()
    own = layer.frequency_matrices(size, size).detach().abs().permute(0, 2, 1, 3)
    canvas = Canvas(figsize=(10, 3.5), layout="constrained")
    pictures = {
        "the matrix on 4 x 4 pixels of 3 channels": matrix.abs(),
        "the same between Fourier transforms": torch.where(blocks > 1e-4 * blocks.max(), blocks, 0.0),
        "what the layer computes: half of the blocks": own.reshape(size * num_channels, -1),
    }
    for number, (title, picture) in enumerate(pictures.items()):
        _draw(canvas.add_subplot(1, 3, number + 1), picture, title, blocks=num_channels)
    return canvas


def architecture() -> Canvas:
    """The paper's figure 7: a flow of three levels, as it is built."""
    flow = Flow((3, 32, 32), EmergingConv2d, AffineCoupling, num_levels=3, num_steps=4, hidden_channels=8)
    canvas = Canvas(figsize=(10, 3.0), layout="constrained")
    axes = canvas.add_subplot()
    axes.set(xlim=(-0.5, 7.75), ylim=(-1.3, 0.65))
    axes.set_axis_off()

    def box(x: float, y: float, text: str, color: str, before: Text | None = None) -> Text:
        shape = {"boxstyle": "round,pad=0.5", "facecolor": color, "edgecolor": "#8a94a0"}
        drawn = axes.text(x, y, text, ha="center", va="center", bbox=shape)
        if before is not None:
            patches = {"patchA": before.get_bbox_patch(), "patchB": drawn.get_bbox_patch()}
            axes.annotate(
                "",
                (x, y),
                before.get_position(),
                arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0, **patches},
            )
        return drawn

    last = box(0, 0, f"image\n{_in_words(flow.image_shape)}", "white")
    last = box(0.85, 0, type(flow.front[0]).__name__, "#fde3d0", last)
    for number, latent_shape in enumerate(flow.latent_shapes):
        steps = [(step, shape) for _, step, shape in flow.steps() if shape[1:] == latent_shape[1:]]
        parts = "\n".join(type(part).__name__ for part in steps[0][0].children())
        text = f"{_in_words(steps[0][1])}\n\n{type(flow.levels[number][0]).__name__}\n{len(steps)} times:\n{parts}"
        last = box(2.2 * number + 1.8, 0, text, "#dbe9f6", last)
        end = flow.factor_outs[number] if number < len(flow.factor_outs) else flow.top
        last = box(2.2 * number + 2.9, 0, type(end).__name__, "#fde3d0", last)
        box(2.2 * number + 2.9, -1.05, f"z{number + 1}\n{_in_words(latent_shape)}", "white", last)
    return canvas


def _in_words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _draw(
    axes: Axes,
    values: Tensor,
    title: str,
    *,
    centre: bool = False,
    blocks: int | None = None,
    colors: Tensor | None = None,
) -> None:
    """Show non-negative numbers as shades on white, or as indices of colours; exact zeros alone are white."""
    height, width = values.shape
    if colors is None:
        nothing = torch.full((), torch.nan)  # is not drawn
        shades = torch.where(values > 0, 0.25 + 0.75 * values / values.max().clamp(min=1e-12), nothing)
        axes.imshow(shades.numpy(), cmap="Blues", vmin=0.0, vmax=1.15, interpolation="nearest")
    else:
        axes.imshow(colors[values.long()].numpy(), interpolation="nearest")
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
            axes.axvline(place - 0.5, color="#4a5360", linewidth=1.2)
        for place in range(blocks, height, blocks):
            axes.axhline(place - 0.5, color="#4a5360", linewidth=1.2)
    if centre:
        axes.plot(width // 2, height // 2, "o", color="#d55e00", markersize=4)


FIGURES = {
    "filters": filters_and_matrices,
    "convolutions": convolutions,
    "masks": masks,
    "fields": chained_receptive_fields,
    "frequencies": frequencies,
    "model": architecture,
}


def main() -> None:
    """Write the figures beside this file."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        for name, draw in FIGURES.items():
            draw().savefig(HERE / f"layers_{name}.png", dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
