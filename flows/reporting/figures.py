"""The training curves of a report, as SVG files; nothing here opens a window or keeps a state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import inf
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from flows.reporting.collect import Curve
from flows.reporting.comparison import Comparison, Row
from flows.reporting.page import Figure

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

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#000000")
"""The first six are Okabe and Ito's, which the colour-blind can tell apart."""

GREY = ("#c9ced4", "-")

DASHES = ("-", "--", ":", "-.")

MAX_COLOURED = 12
"""Configurations whose curves have a colour and a name; those of the others are grey."""

MAX_MARKED = 15
"""Points up to which each of a curve's is marked."""

MAX_POINTS = 300
"""Points of a drawn curve; a longer one is averaged over as many equal parts."""


def training_curves(comparison: Comparison, name: str) -> Figure | None:
    """Training and validation bits/dim by step, a line for each run; ``None`` if no run has logged any."""
    metrics = {"train/bits_per_dim": "training", "val/bits_per_dim": "validation, raw weights"}
    known = {
        metric: [(row, run.curves[metric]) for row in comparison.rows for run in row.runs if metric in run.curves]
        for metric in metrics
    }
    if not any(known.values()):
        return None
    coloured = _best_rows(comparison.rows)
    styles = line_styles(coloured)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 3.6 + 0.08 * len(coloured)), layout="constrained")
        for number, (metric, title) in enumerate(metrics.items()):
            axes = canvas.add_subplot(1, 2, number + 1)
            labelled: set[Row] = set()
            for row, curve in known[metric]:
                (color, dashes), (steps, values) = styles.get(row, GREY), thinned(curve)
                (line,) = axes.plot(steps, values, dashes, color=color, linewidth=1.1, alpha=0.85)
                line.set(marker="." if len(steps) < MAX_MARKED else "", zorder=2 if row in styles else 1)
                line.set_label("" if row in labelled or row not in styles else comparison.titles[row])
                labelled.add(row)
            _show_all_but_the_start(axes, [curve for _, curve in known[metric]])
            axes.set(title=title, xlabel="optimiser steps", ylabel="bits/dim")
        legends = [axes.get_legend_handles_labels() for axes in canvas.axes]
        canvas.legend(*max(legends, key=lambda legend: len(legend[0])), loc="outside lower center", ncols=3)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return Figure(
        f"{name}-curves.svg",
        file.getvalue(),
        alt=f"Training and validation bits/dim over training, {comparison.setting.data}",
        caption="Bits/dim over training, one line for each seed. Raw weights, one draw of noise per image. The first "
        "steps may lie above the frame."
        + (
            f" Coloured: the {MAX_COLOURED} configurations that are best on validation images; the others are grey."
            if len(coloured) < len(comparison.rows)
            else ""
        ),
    )


def _best_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows with the best validation scores, in the order that they have."""
    lowest = {row: min((s for run in row.runs if (s := run.best_validation) is not None), default=inf) for row in rows}
    chosen = sorted(rows, key=lowest.__getitem__)[:MAX_COLOURED]
    return [row for row in rows if row in chosen]


def thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve of at most ``MAX_POINTS`` points, each the mean of equally many neighbours."""
    parts = np.array_split(np.array([curve.steps, curve.values], dtype=float), min(len(curve.steps), MAX_POINTS), 1)
    means = np.array([part.mean(axis=1) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def line_styles(rows: Sequence[Row]) -> dict[Row, tuple[str, str]]:
    """A colour for each row, with other dashes once all colours have been used."""
    return dict(zip(rows, ((color, dashes) for dashes in DASHES for color in COLORS), strict=False))


def _show_all_but_the_start(axes: Axes, curves: Sequence[Curve]) -> None:
    """Choose the frame by what comes after the first tenth of the steps, where bits/dim fall from far above."""
    last = max((curve.steps[-1] for curve in curves), default=0)
    values = [v for curve in curves for step, v in zip(*thinned(curve), strict=True) if step >= last / 10]
    if values and max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)
