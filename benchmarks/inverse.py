"""Time the inverse of one autoregressive convolution against its forward pass, for every solver backend.

    python -m benchmarks.inverse
    python -m benchmarks.inverse --shapes cifar10 --batches 1 64 --naive --output inverse.json
    python -m benchmarks.inverse --layer maf --shapes cifar10

Rows are the levels of the paper's models (3 x 3 square masks: 2 x 2 taps). ``--layer maf`` times a masked
autoregressive transform instead, its weights away from the initial ones. ``forward`` is the cheapest way in which torch
runs the layer; ``naive`` is the textbook's substitution in torch, one pixel and channel at a time, all images at once.
Behind each time stands its ratio to ``forward``, behind the last column the error relative to the reference, and the
work rate counts the filter's entries that are not zero. Nothing here fails on a time: where a bar is set, ``!`` marks a
figure beyond it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.program import add_device, conclude, format_time, new_parser, pick_device, run, say, show_machine
from flows.layers import MaskedAutoregressiveTransform
from flows.measures.diagnostics import count_parameters
from flows.measures.timing import fastest_of_many
from flows.solvers import BACKENDS, find_backend, masked, prepare_autoregressive_conv
from flows.solvers.reference import MAX_UNKNOWNS

# (height, width, channels) after the squeeze of each level
SHAPES = {
    "cifar10": [(16, 16, 12), (8, 8, 24), (4, 4, 48)],
    "imagenet64": [(32, 32, 12), (16, 16, 24), (8, 8, 48), (4, 4, 96)],
}
# By batch size: the solver's time over the forward pass's, at most; the naive loop's time over the solver's, at least.
BARS = {1: {"forward": 3.0, "naive": 1000.0}, 64: {"forward": 1.0, "naive": 500.0}}


def random_filter(num_channels: int, scale: float = 0.02) -> Tensor:
    """Identity plus noise, (C, C, 3, 3), as the paper initialises it; reads right and below."""
    weight = torch.zeros(num_channels, num_channels, 3, 3)
    weight[:, :, 1:, 1:] = scale * torch.randn(num_channels, num_channels, 2, 2)
    weight[:, :, 1, 1] = weight[:, :, 1, 1].tril() + torch.eye(num_channels)
    return weight


def naive_inverse(z: Tensor, weight: Tensor) -> Tensor:
    """Substitution as in a textbook: one pixel and one channel at a time, all images at once."""
    middle, kernel_size = weight.shape[-1] // 2, weight.shape[-1]
    x = F.pad(torch.zeros_like(z), [middle] * 4)
    for i in reversed(range(z.shape[2])):
        for j in reversed(range(z.shape[3])):
            for c in range(z.shape[1]):
                known = (x[:, :, i : i + kernel_size, j : j + kernel_size] * weight[c]).sum(dim=(1, 2, 3))
                x[:, c, i + middle, j + middle] = (z[:, c, i, j] - known) / weight[c, c, middle, middle]
    return x[:, :, middle:-middle, middle:-middle]


def forward_passes(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The same convolution in the ways that torch can run it."""
    quarter = weight[:, :, 1:, 1:].contiguous()
    return {
        "forward, padded 2 x 2": lambda: F.conv2d(F.pad(x, (0, 1, 0, 1)), quarter),
        "forward, masked 3 x 3": lambda: F.conv2d(x, weight, padding=1),
    }


@dataclass(frozen=True)
class Problem:
    """A layer that is inverted.

    Attributes:
        forward: from ``x``, the ways to run it.
        prepare: from the name of a backend, its inverse.
        exact: the inverse in float64, if that is not too large.
        naive: the textbook's inverse, if there is one.
        operations: for a pixel.
    """

    forward: Callable[[Tensor], dict[str, Callable[[], Tensor]]]
    prepare: Callable[[str], Callable[[Tensor], Tensor]]
    exact: Callable[[Tensor], Tensor] | None
    naive: Callable[[Tensor], Tensor] | None
    operations: int


def convolution(num_channels: int, image_size: tuple[int, int], device: torch.device) -> Problem:
    """An autoregressive convolution."""
    weight = random_filter(num_channels).to(device)
    options = {"direction": "lower", "image_size": image_size}
    is_small = num_channels * image_size[0] * image_size[1] <= MAX_UNKNOWNS // 4
    return Problem(
        forward=lambda x: forward_passes(x, weight),
        prepare=lambda name: prepare_autoregressive_conv(weight, **options, backend=name),
        exact=prepare_autoregressive_conv(weight.double(), **options, backend="reference") if is_small else None,
        naive=partial(naive_inverse, weight=weight),
        operations=2 * int(weight.count_nonzero()),
    )


def maf(num_channels: int, image_size: tuple[int, int], device: torch.device) -> Problem:
    """A masked autoregressive transform; ``benchmarks.sampling`` times its naive inverse."""
    layer = MaskedAutoregressiveTransform(num_channels).to(device)
    for parameter in layer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)

    def prepare(name: str) -> Callable[[Tensor], Tensor]:
        twin = copy.deepcopy(layer)
        twin.solver = name
        twin.inverse(torch.zeros(1, num_channels, *image_size, device=device))
        return twin.inverse

    return Problem(
        forward=lambda x: {"forward": lambda: layer(x)[0]},
        prepare=prepare,
        exact=copy.deepcopy(layer).double().inverse,
        naive=None,
        operations=2 * count_parameters(layer),
    )


LAYERS = {"autoregressive": (convolution, BACKENDS), "maf": (maf, masked.BACKENDS)}
"""How to make the problem, and the backends that solve it."""


def measure(
    problem: Problem, z: Tensor, backends: list[str], naive: bool, seconds: float, device: torch.device
) -> dict[str, object]:
    """All figures of one shape and batch size."""
    preparing = {
        name: fastest_of_many({name: partial(problem.prepare, name)}, seconds=0, device=device)[name]
        for name in backends
    }
    solvers = {name: problem.prepare(name) for name in backends}

    forward = problem.forward(z)
    best = fastest_of_many(
        {**forward, **{name: partial(solver, z) for name, solver in solvers.items()}}, seconds=seconds, device=device
    )
    times = {"forward": min(best[name] for name in forward)}
    if naive and problem.naive is not None:
        loop = {"naive": partial(problem.naive, z)}
        times["naive"] = fastest_of_many(loop, seconds=0, device=device, min_rounds=2)["naive"]
    times.update({name: best[name] for name in backends})

    errors = {}
    if problem.exact is not None:
        few = z[:4]
        exact = problem.exact(few.double())
        errors = {
            name: float((solver(few) - exact).abs().max() / exact.abs().max()) for name, solver in solvers.items()
        }
    batch, num_channels, height, width = z.shape
    operations = problem.operations * batch * height * width
    return {
        "height": height,
        "width": width,
        "channels": num_channels,
        "batch": batch,
        "seconds": times,
        "seconds_to_prepare": preparing,
        "gflop_per_second": {name: operations / taken / 1e9 for name, taken in times.items()},
        "relative_error": errors,
    }


def as_row(result: dict, columns: list[str], judged: str) -> list[str]:
    times, bars = result["seconds"], BARS.get(result["batch"], {}) if result["bars_apply"] else {}
    row = [f"{result['height']}x{result['width']}x{result['channels']}", str(result["batch"])]
    for name in columns:
        ratio = times[name] / times["forward"]
        missed = name == judged and ratio > bars.get("forward", float("inf"))
        missed |= name == "naive" and times[name] / times[judged] < bars.get("naive", 0)
        row.append(format_time(times[name]) + ("" if name == "forward" else f" ({ratio:.3g}x{'!' if missed else ''})"))
    row.append(f"{times['naive'] / times[judged]:,.0f}x" if "naive" in times else "-")
    row.append(f"{result['gflop_per_second'][judged]:.3g}")
    row.append(format_time(result["seconds_to_prepare"][judged]))
    row.append(f"{result['relative_error'][judged]:.1e}" if result["relative_error"] else "-")
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--layer", choices=LAYERS, default="autoregressive")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: all that are fast and run here")
    add_device(parser)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row, besides the naive loop")
    parser.add_argument("--naive", action="store_true", help="time the naive loop, too (up to a minute for each row)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = pick_device(options)
    make_problem, its_backends = LAYERS[options.layer]
    usable = [name for name in its_backends if name != "reference" and find_backend(name).unavailable(device) is None]
    backends = options.backends or usable
    judged = backends[-1]  # the table of backends lists the fastest for each device last
    columns = ["forward", *(["naive"] if options.naive and options.layer != "maf" else []), *backends]

    machine = show_machine(device)
    results = []
    started = time.perf_counter()
    with torch.inference_mode():
        for name in options.shapes:
            for height, width, num_channels in SHAPES[name]:
                for batch in options.batches:
                    say(f"{name} {height}x{width}x{num_channels}, batch {batch} ...")
                    problem = make_problem(num_channels, (height, width), device)
                    z = torch.randn(batch, num_channels, height, width).to(device)
                    result = measure(problem, z, backends, options.naive, options.seconds, device)
                    bars_apply = name == "cifar10" and device.type == "cpu" and options.layer == "autoregressive"
                    results.append({**result, "bars_apply": bars_apply})
    say(f"measured for {time.perf_counter() - started:.0f} s")
    header = ["HxWxC", "batch", *columns, f"naive/{judged}", "GFLOP/s", "prepare", "error"]
    rows = [as_row(result, columns, judged) for result in results]
    conclude(options.output, header, rows, machine=machine, results=results)


if __name__ == "__main__":
    run(main)
