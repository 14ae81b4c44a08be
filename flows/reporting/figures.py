"""Pictures for a report, as SVG files; none of them opens a window or keeps a state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter

from flows.reporting.collect import Curve
from flows.reporting.comparison import Comparison, Row
from flows.reporting.page import Figure
from flows.reporting.paper import paper_sampling
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


def _svg(canvas: Canvas) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return file.getvalue()
