"""Draw README's picture from a trained run: ``python docs/draw_readme.py runs/my-run``.

Above, which pixels one output pixel depends on through three layers, by autograd. Below, the run's samples at
temperature 1, none left out, with the bits/dim that the flow gives each. The colours suit light and dark pages.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import matplotlib
import torch
from draw_layers import receptive_field, visible
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure

from flows import load_flow
from flows.layers import Conv1x1, EmergingConv2d, PeriodicConv2d

INK, GRID, PIXEL = "#7d8590", "#7d859055", "#d55e00"
NUM_SAMPLES = 7


def draw_fields(canvas: SubFigure) -> None:
    """The receptive fields of a 1x1 and an emerging layer at the centre, and of a periodic one at a corner."""
    layers = {
        "1x1:\none pixel": (Conv1x1, (3, 3)),
        "emerging 3x3:\nneighbours": (EmergingConv2d, (3, 3)),
        "periodic 3x3:\naround the border": (PeriodicConv2d, (0, 0)),
    }
    for number, (title, (make, pixel)) in enumerate(layers.items()):
        axes = canvas.add_subplot(1, len(layers), number + 1)
        seen = receptive_field(visible(partial(make, 1)), 1, 7, pixel) > 0
        shades = torch.where(seen, 1.0, torch.nan)
        axes.pcolormesh(shades, cmap="Blues", vmin=0.0, vmax=1.6, edgecolors=GRID, linewidth=1.5)
        axes.plot(pixel[1] + 0.5, pixel[0] + 0.5, "o", color=PIXEL, markersize=9)
        axes.set(aspect="equal", xticks=[], yticks=[], title=title)
        axes.invert_yaxis()
        axes.spines[:].set_color(INK)


@torch.no_grad()
def draw_samples(canvas: SubFigure, run: Path) -> None:
    """A row of samples, each with its bits/dim."""
    flow = load_flow(run)
    images = flow.sample(NUM_SAMPLES, temperature=1.0, generator=torch.Generator().manual_seed(0))
    scores = flow.bits_per_dim(images, generator=torch.Generator().manual_seed(1))
    for number, (image, score) in enumerate(zip(images, scores.tolist(), strict=True)):
        axes = canvas.add_subplot(1, NUM_SAMPLES, number + 1)
        axes.imshow(image.permute(1, 2, 0), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"{score:.2f}", y=-0.32)
    canvas.suptitle("samples at temperature 1, and their bits/dim", y=1.02, color=INK)


def main() -> None:
    """Write ``readme.png`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    options = parser.parse_args()
    style = {"font.size": 17, "axes.titlesize": 17, "figure.titlesize": 17, "text.color": INK, "axes.titlecolor": INK}
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(10, 6.6), layout="constrained")
        above, below = canvas.subfigures(2, 1, height_ratios=(3.4, 2))
        draw_fields(above)
        draw_samples(below, options.run)
        canvas.savefig(Path(__file__).resolve().parent / "readme.png", dpi=120, transparent=True)


if __name__ == "__main__":
    main()
