"""Count what a trained flow cannot invert: samples that overflow, and images that do not come back pixel for pixel.

    python -m benchmarks.stability runs/my-run
    python -m benchmarks.stability sweeps/mixing/* --samples 10000 --weights raw averaged --output stability.json

The images are unlike any data: uniform noise, one bright pixel on black, checkerboards of random period, phase and
colours, and constant images. Those that come back through ``decode(encode(x))`` are counted, in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.program import add_device, conclude, new_parser, pick_device, run, say, show_machine
from flows import load_flow
from flows.measures.diagnostics import sample_health
from flows.models.base import DensityModel

COUNTS = {"noise": 4000, "bright pixel": 4000, "checkerboard": 1900, "constant": 100}
"""Images of each kind."""

BATCH = 250


def noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Uniform noise."""
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def bright_pixel(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Black but for one white pixel anywhere."""
    images = torch.zeros(count, *shape, dtype=torch.uint8)
    rows = torch.randint(0, shape[1], (count,), generator=generator)
    columns = torch.randint(0, shape[2], (count,), generator=generator)
    images[torch.arange(count), :, rows, columns] = 255
    return images


def checkerboard(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Squares of side 1 to 8 from anywhere on, in two random colours."""
    sides = torch.randint(1, 9, (count, 1, 1), generator=generator)
    row_shifts, column_shifts = (torch.randint(0, 16, (count, 1, 1), generator=generator) for _ in range(2))
    rows = (torch.arange(shape[1])[:, None] + row_shifts) // sides
    columns = (torch.arange(shape[2]) + column_shifts) // sides
    colours = torch.randint(0, 256, (2, count, shape[0], 1, 1), generator=generator, dtype=torch.uint8)
    return torch.where(((rows + columns) % 2 == 0)[:, None], colours[0], colours[1])


def constant(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """One random colour each."""
    colours = torch.randint(0, 256, (count, shape[0], 1, 1), generator=generator, dtype=torch.uint8)
    return colours.expand(count, *shape).clone()


KINDS: dict[str, Callable[[int, tuple[int, int, int], torch.Generator], Tensor]] = {
    "noise": noise,
    "bright pixel": bright_pixel,
    "checkerboard": checkerboard,
    "constant": constant,
}


@torch.no_grad()
def count_returned(flow: DensityModel, images: Tensor) -> int:
    """Number of images that come back exactly."""
    returned = 0
    for batch in flow.dequantizer.reduce(images).split(BATCH):
        again, finite = flow.decode_finite(flow.encode(batch))
        returned += int(((again.cpu() == batch).flatten(1).all(dim=1) & finite.cpu()).sum())
    return returned


def measure(flow: DensityModel, num_samples: int) -> dict[str, float]:
    """All figures of one flow."""
    health = sample_health(flow, num_samples, batch_size=BATCH)
    figures: dict[str, float] = {
        "samples": num_samples,
        "not finite": round(health.not_finite * num_samples),
        "beyond [-1, 1] %": 100 * health.beyond,
        "values outside %": 100 * health.outside,
        "largest": health.largest,
        "gain": health.gain,
    }
    for kind, make in KINDS.items():
        images = make(COUNTS[kind], flow.image_shape, torch.Generator().manual_seed(0))
        figures[kind] = count_returned(flow, images)
    return figures


def main() -> None:
    """Print a line for each run and each kind of weights."""
    parser = new_parser(__doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or checkpoints")
    parser.add_argument("--samples", type=int, default=10_000, help="at temperature 1")
    parser.add_argument("--weights", nargs="+", default=["raw", "averaged"], choices=["raw", "averaged"])
    add_device(parser)
    options: argparse.Namespace = parser.parse_args()
    device = pick_device(options)
    machine = show_machine(device)
    header = ["run", "weights", "not finite", "beyond [-1, 1]", "outside", "largest", "gain"]
    header += [f"{kind}, of {count:,}" for kind, count in COUNTS.items()]
    rows, found = [], []
    for folder in options.runs:
        for weights in options.weights:
            say(f"{folder}, {weights} weights")
            figures = measure(load_flow(folder, weights, device), options.samples)
            found.append({"run": str(folder), "weights": weights, **figures})
            shown = [f"{figures['not finite']:,} of {options.samples:,}"]
            shown += [f"{figures[f'{name} %']:.2f} %" for name in ("beyond [-1, 1]", "values outside")]
            shown += [f"{figures['largest']:.2f}", f"{figures['gain']:.1f}", *(f"{figures[kind]:,}" for kind in COUNTS)]
            rows.append([str(folder), weights, *shown])
    conclude(options.output, header, rows, machine=machine, runs=found)


if __name__ == "__main__":
    run(main)
