"""Pictures for a report, as SVG files; none of them opens a window or keeps a state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter
from torch import Tensor

from flows.layers import AutoregressiveConv2d, EmergingConv2d, Layer, PeriodicConv2d
from flows.reporting.collect import Curve
from flows.reporting.comparison import Comparison, Row
from flows.reporting.page import Figure
from flows.reporting.paper import paper_sampling
from flows.reporting.receptive import equivalent_matrix, receptive_field, tap_mask, visible
from flows.runs.checkpoint import Weights

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#8a94a0",
    "xtick.color": "#4a5360",
    "ytick.color": "#4a5360",
    "axes.labelcolor": "#2a323c",
    "legend.frameon": False,
    "text.parse_math": False,  # names come from run folders
    "svg.hashsalt": "report",  # the same figures give the same file
    "svg.fonttype": "path",
}

COLORS = {
    "1x1": "#0072b2",
    "emerging 3x3": "#d55e00",
    "periodic 3x3": "#009e73",
    "MAF": "#cc79a7",
    "1x1 PLU": "#e69f00",
    "1x1 QR": "#56b4e9",
}
"""Okabe and Ito's, which the colour-blind can tell apart, for the paper's layers."""

OTHER_COLORS = ("#6b4c9a", "#7f7f7f", "#8c564b", "#000000")

DASHES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "D", "^")

MAX_MARKED = 15
"""Points up to which each of a curve's is marked."""

MAX_POINTS = 300
"""Points of a drawn curve; a longer one is averaged over as many equal parts."""


@dataclass(frozen=True)
class LineStyle:
    """How a row is drawn, in every figure of its comparison."""

    color: str
    dashes: str
    marker: str


@dataclass(frozen=True)
class SamplingTimes:
    """Milliseconds an image takes to sample, by row, and what that was measured with."""

    milliseconds: Mapping[Row, float]
    batch_size: int
    machine: str


def training_curves(comparison: Comparison, name: str) -> Figure | None:
    """Training and validation bits/dim by step, a line for each run; ``None`` if no run has logged any."""
    metrics = {"train/bits_per_dim": "training", "val/bits_per_dim": "validation, raw weights"}
    styles = line_styles(comparison.rows)
    known = {
        metric: [(row, run.curves[metric]) for row in comparison.rows for run in row.runs if metric in run.curves]
        for metric in metrics
    }
    if not any(known.values()):
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 3.6 + 0.08 * len(comparison.rows)), layout="constrained")
        for number, (metric, title) in enumerate(metrics.items()):
            axes = canvas.add_subplot(1, 2, number + 1)
            labelled: set[Row] = set()
            for row, curve in known[metric]:
                style, (steps, values) = styles[row], thinned(curve)
                (line,) = axes.plot(steps, values, style.dashes, color=style.color, linewidth=1.1, alpha=0.85)
                line.set_marker("." if len(steps) < MAX_MARKED else "")
                line.set_label("" if row in labelled else comparison.titles[row])
                labelled.add(row)
            _show_all_but_the_start(axes, [curve for _, curve in known[metric]])
            axes.set(title=title, xlabel="optimiser steps", ylabel="bits/dim")
        fullest = max(canvas.axes, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
        _legend(canvas, fullest)
        return Figure(
            f"{name}-curves.svg",
            _svg(canvas),
            alt=f"Training and validation bits/dim over training, {comparison.setting.data}",
            caption="Bits/dim over training, one line for each seed. Raw weights, one draw of noise an image. The "
            "first steps may lie above the frame.",
        )


def thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve of at most ``MAX_POINTS`` points, each the mean of equally many neighbours."""
    parts = np.array_split(np.array([curve.steps, curve.values], dtype=float), min(len(curve.steps), MAX_POINTS), 1)
    means = np.array([part.mean(axis=1) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def line_styles(rows: Sequence[Row]) -> dict[Row, LineStyle]:
    """A colour for each mixing layer; dashes and markers for what else differs."""
    others = list(dict.fromkeys(row.mixing for row in rows if row.mixing not in COLORS))
    seen: dict[str, int] = {}
    styles = {}
    for row in rows:
        number = seen[row.mixing] = seen.get(row.mixing, -1) + 1
        color = COLORS.get(row.mixing) or OTHER_COLORS[others.index(row.mixing) % len(OTHER_COLORS)]
        styles[row] = LineStyle(color, DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)])
    return styles


def _show_all_but_the_start(axes: Axes, curves: Sequence[Curve]) -> None:
    """Choose the frame by what comes after the first tenth of the steps, where bits/dim fall from far above."""
    last = max((curve.steps[-1] for curve in curves), default=0)
    values = [v for curve in curves for step, v in zip(*thinned(curve), strict=True) if step >= last / 10]
    if values and max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)


def accuracy_against_time(comparison: Comparison, times: SamplingTimes, weights: Weights, name: str) -> Figure | None:
    """Bits/dim by sampling time, beside the paper's table 5; ``None`` if no row has both."""
    points = {
        row: (times.milliseconds[row], estimate)
        for row in comparison.rows
        if row in times.milliseconds and (estimate := row.estimate(weights)) is not None
    }
    if not points:
        return None
    styles = line_styles(comparison.rows)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 3.6 + 0.08 * len(points)), layout="constrained")
        ours, paper = canvas.subplots(1, 2, width_ratios=(3, 2))
        for row, (milliseconds, estimate) in points.items():
            style = styles[row]
            label = comparison.titles[row]
            error = estimate.deviation or 0.0
            ours.errorbar(
                milliseconds, estimate.mean, error, fmt=style.marker, color=style.color, capsize=3, label=label
            )
        ours.set(title=f"{comparison.setting.data}, {weights} weights")
        slowest, fastest = (extreme(milliseconds for milliseconds, _ in points.values()) for extreme in (max, min))
        if slowest > 10 * fastest:
            _take_logarithm(ours)
        else:
            ours.set_xlim(0, 1.15 * slowest)
        _legend(canvas, ours)
        for line in paper_sampling():
            color = COLORS[line.mixing]
            paper.plot([line.naive, line.accelerated], [line.mean] * 2, color=color, linewidth=0.8, alpha=0.6)
            paper.plot(line.naive, line.mean, "o", color=color, fillstyle="none")
            paper.plot(line.accelerated, line.mean, "o", color=color)
            at = (line.accelerated, line.mean)
            paper.annotate(line.mixing, at, (0, 6), textcoords="offset points", ha="center", color=color)
        paper.set(title="the paper's table 5 (CIFAR10)", ylim=(3.32, 3.37))
        _take_logarithm(paper)
        for axes in (ours, paper):
            axes.set(xlabel="ms to sample an image", ylabel="test bits/dim")
        return Figure(
            f"{name}-time.svg",
            _svg(canvas),
            alt=f"Test bits/dim against sampling time, {comparison.setting.data}",
            caption=f"Left and below is better. Ours: batches of {times.batch_size} samples, temperature 0.7, the "
            f"fastest of several; {times.machine}; bars are the standard deviation over seeds. The paper's (open: the "
            "naive, filled: the accelerated inverse) are of other images, models and machines, hardware and batch size "
            "not stated: what compares is the message, not the numbers.",
        )


def _legend(canvas: Canvas, axes: Axes) -> None:
    """Below everything, in as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    canvas.legend(handles, labels, loc="outside lower center", ncols=max(1, min(4, 110 // (longest + 8))))


def _take_logarithm(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


@cache
def paper_figures() -> tuple[Figure, ...]:
    """Figures 1, 4 and 5 of the paper, drawn from this project's layers as they are: every time the same."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        return _filters_and_matrices(), _masks(), _chained_receptive_fields()


def _filters_and_matrices() -> Figure:
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
    return Figure(
        "figure1.svg",
        _svg(canvas),
        alt="Filters of two autoregressive, an emerging and a periodic convolution above their matrices",
        caption="The paper's figure 1. Above: what the output at the centre of a 5 x 5 image sees of the input (by "
        "autograd). Below: the layer as a matrix (by impulses). Two triangular matrices give a full band, which is "
        "what an ordinary 3 x 3 convolution sees; the periodic one also wraps around.",
    )


def _masks() -> Figure:
    num_channels = 3
    canvas = Canvas(figsize=(10, 5.4), layout="constrained")
    for row, shape in enumerate(("square", "raster")):
        for column, direction in enumerate(("lower", "upper")):
            layer = visible(
                partial(AutoregressiveConv2d, num_channels, direction=direction, mask=shape, bias=False)  # type: ignore[arg-type]
            )
            assert isinstance(layer, AutoregressiveConv2d)
            axes = canvas.add_subplot(2, 4, 4 * row + 2 * column + 1)
            _draw(axes, tap_mask(layer.weight_mask), f"{shape}, {direction}: the mask", blocks=num_channels)
            axes = canvas.add_subplot(2, 4, 4 * row + 2 * column + 2)
            _draw(axes, equivalent_matrix(layer, num_channels, 3).abs(), "its matrix on 3 x 3 pixels")
    return Figure(
        "figure4.svg",
        _svg(canvas),
        alt="Masks of autoregressive convolutions of three channels beside their triangular matrices",
        caption="The paper's figure 4. The masks of the autoregressive convolutions, 3 x 3 taps of 3 x 3 channels "
        "(output by input) each; at the centre tap the channels are triangular. Beside each, the layer as a matrix: "
        "triangular, so that its determinant is the product of its diagonal and its inverse a substitution.",
    )


def _chained_receptive_fields() -> Figure:
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
    return Figure(
        "figure5.svg",
        _svg(canvas),
        alt="Receptive fields of two autoregressive convolutions and of their chain, for three kinds of masks",
        caption="The paper's figure 5. Receptive fields of two chained 3 x 3 autoregressive convolutions on a 7 x 7 "
        "image, by autograd; the dot is the output pixel. Square masks emerge as exactly an ordinary 3 x 3 "
        "convolution; raster masks reach further. Darker: more paths lead there.",
    )


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


def _svg(canvas: Canvas) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return file.getvalue()
