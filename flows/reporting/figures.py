"""The training curves of a report, as SVG files; nothing here opens a window or keeps a state."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from flows.reporting.collect import COST, Curve, Points, Run
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

NO_CURVE = Curve([], [])


def _by_step(name: str, run: Run) -> Points:
    curve = run.curves.get(name, NO_CURVE)
    return curve.steps, curve.values


def _by_cost(name: str, run: Run) -> Points:
    return run.curves.get(name, NO_CURVE).against(run.curves.get(COST, NO_CURVE))


PANELS: Sequence[tuple[str, str, Callable[[Run], Points]]] = (
    ("training", "optimiser steps", partial(_by_step, "train/bits_per_dim")),
    ("validation, raw weights", "optimiser steps", partial(_by_step, "val/bits_per_dim")),
    ("validation, raw weights", "device-hours", partial(_by_cost, "val/bits_per_dim")),
)
"""What stands in each panel: its title, the measure of the training, and the points of a run."""


def training_curves(comparison: Comparison, name: str) -> Figure | None:
    """Training and validation bits/dim by step and by device-hours, a line for each run.

    Returns:
        ``None`` if no run has logged any. What no run has logged has no panel.
    """
    panels = [
        (title, measure, [(row, points) for row in comparison.rows for run in row.runs if (points := read(run))[0]])
        for title, measure, read in PANELS
    ]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return None
    coloured = _best_rows(comparison.rows)
    styles = line_styles(coloured)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 3.6 + 0.08 * len(coloured)), layout="constrained")
        for number, (title, measure, lines) in enumerate(panels, 1):
            axes = canvas.add_subplot(1, len(panels), number)
            labelled: set[Row] = set()
            for row, points in lines:
                (color, dashes), (xs, ys) = styles.get(row, GREY), thinned(points)
                (line,) = axes.plot(xs, ys, dashes, color=color, linewidth=1.1, alpha=0.85)
                line.set(marker="." if len(xs) < MAX_MARKED else "", zorder=2 if row in styles else 1)
                line.set_label("" if row in labelled or row not in styles else comparison.titles[row])
                labelled.add(row)
            _show_all_but_the_start(axes, [points for _, points in lines])
            axes.set(title=title, xlabel=measure, ylabel="bits/dim")
            axes.xaxis.set_major_locator(MaxNLocator(5))
        legends = [axes.get_legend_handles_labels() for axes in canvas.axes]
        canvas.legend(*max(legends, key=lambda legend: len(legend[0])), loc="outside lower center", ncols=3)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return Figure(
        f"{name}-curves.svg",
        file.getvalue(),
        alt=f"Training and validation bits/dim over steps and device-hours, {comparison.setting.data}",
        caption="Bits/dim over training, one line for each seed. Raw weights, one draw of noise per image. The first "
        "steps may lie above the frame. Device-hours: time of the training, validations included, times devices."
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


def thinned(points: Points) -> Points:
    """At most ``MAX_POINTS`` points, each the mean of equally many neighbours."""
    parts = np.array_split(np.array(points, dtype=float), min(len(points[0]), MAX_POINTS), 1)
    means = np.array([part.mean(axis=1) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def line_styles(rows: Sequence[Row]) -> dict[Row, tuple[str, str]]:
    """A colour for each row, with other dashes once all colours have been used."""
    return dict(zip(rows, ((color, dashes) for dashes in DASHES for color in COLORS), strict=False))


def _show_all_but_the_start(axes: Axes, lines: Sequence[Points]) -> None:
    """Choose the frame by what comes after the first tenth, where bits/dim fall from far above."""
    last = max(xs[-1] for xs, _ in lines)
    values = [y for points in lines for x, y in zip(*thinned(points), strict=True) if x >= last / 10]
    if max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)
