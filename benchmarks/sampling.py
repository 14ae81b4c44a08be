"""Time sampling from whole models, emerging and MAF against 1x1: the rows of the paper's table 5.

    python -m benchmarks.sampling
    python -m benchmarks.sampling --models conv1x1 emerging macow --batches 1 16 --num-steps 8 --output sampling.json

The models are named after their mixing layers in ``conf/mixing``, and as large as the paper's: L 3, D 32 for CIFAR10
and L 4, D 48 for ImageNet64; width 512, and the paper's 462 for MAF. What is timed is ``flow.decode``: from latents to
pixels. A row is a model and the solver of its mixing layers; behind each time stands its ratio to the first row.
``naive`` is the textbook's substitution in torch, one pixel and channel at a time, all images at once. One such model
takes hours, so one mixing layer of each level is timed, and its time is counted D times, on top of the first model's
(marked ~). Weights are the initial ones, at which MAF is the identity: ``jacobi`` needs two sweeps there, and dozens
after a training. Nothing here fails on a time: where a bar is set, ``!`` marks a figure beyond it.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.inverse import naive_inverse
from benchmarks.program import add_device, conclude, format_time, new_parser, pick_device, run, say, show_machine
from flows import Flow
from flows.config.mixings import MIXINGS, mixing
from flows.layers import AffineCoupling, AutoregressiveConv2d, Layer, MaskedAutoregressiveTransform
from flows.measures.timing import fastest_of_many
from flows.numerics import bounded
from flows.solvers import BACKENDS, find_backend, masked
from flows.solvers.compiled import CompiledSolver
from flows.solvers.masked import shift_and_log_scale


@dataclass(frozen=True)
class Data:
    """An image shape and the paper's depth for it."""

    image_shape: tuple[int, int, int]
    num_levels: int
    num_steps: int


DATA = {"cifar10": Data((3, 32, 32), 3, 32), "imagenet64": Data((3, 64, 64), 4, 48)}
WIDTHS = {"maf": 462, "maf_sigmoid": 462}
"""Of the couplings, where it is not 512."""

SOLVED = {AutoregressiveConv2d: BACKENDS, MaskedAutoregressiveTransform: masked.BACKENDS}
"""Layers with a choice of solvers."""

# By model and batch size: its time over that of the 1x1 model, at most.
BARS = {("emerging", 1): 1.10, ("emerging", 16): 1.05, ("maf", 16): 5.0}


def naive_convolution(z: Tensor, layer: AutoregressiveConv2d) -> Tensor:
    """The textbook's inverse of an autoregressive convolution."""
    if layer.bias is not None:
        z = z - layer.bias[:, None, None]
    if layer.direction == "lower":
        return naive_inverse(z, layer.filter())
    return naive_inverse(z.flip(1, 2, 3), layer.filter().flip(0, 1, 2, 3)).flip(1, 2, 3)


def naive_masked(z: Tensor, layer: MaskedAutoregressiveTransform) -> Tensor:
    """The textbook's inverse of a masked network, which is evaluated anew, on the rows that matter, for each number."""
    x = torch.zeros_like(z)
    _, num_channels, height, width = z.shape
    numbers = [(i, j, c) for i in range(height) for j in range(width) for c in range(num_channels)]
    for i, j, c in reversed(numbers) if layer.reverse else numbers:
        top = max(0, i - 2)
        seen = bounded(x[:, :, top : i + 3], layer.max_input)
        outputs = layer.last(layer.second(layer.first(seen).relu()).relu())[:, :, i - top, j]
        mu, h = outputs[:, 2 * c], outputs[:, 2 * c + 1]
        shift, log_scale = shift_and_log_scale(mu, h, layer.max_log_scale, layer.max_shift)
        x[:, c, i, j] = (z[:, c, i, j] - shift) * torch.exp(-log_scale)
    return x


def naive_inverse_of(layer: Layer, z: Tensor) -> Tensor:
    """All that is sequential in a mixing layer; its 1x1 is counted with the 1x1 model."""
    for part in reversed(list(layer.modules())):
        if isinstance(part, AutoregressiveConv2d):
            z = naive_convolution(z, part)
        elif isinstance(part, MaskedAutoregressiveTransform):
            z = naive_masked(z, part)
    return z


def seconds_of_naive_layers(flow: Flow, batch: int, device: torch.device) -> float:
    """What the mixing layers of a model would take in all, from one layer of each level."""
    total = 0.0
    levels = {step.actnorm.bias.shape[0]: (step, shape) for _, step, shape in flow.steps()}
    for step, shape in levels.values():
        inverse = partial(naive_inverse_of, step.mixing, torch.randn(batch, *shape, device=device))
        fastest = fastest_of_many({"naive": inverse}, seconds=0, device=device, min_rounds=1, warm_up=False)
        total += fastest["naive"] * sum(s.actnorm.bias.shape == step.actnorm.bias.shape for _, s, _ in flow.steps())
    return total


def with_solver(flow: Flow, solver: str) -> Flow:
    """The same model, sharing its parameters, with another solver in its mixing layers."""
    twin = copy.deepcopy(flow, {id(parameter): parameter for parameter in flow.parameters()})
    for module in twin.modules():
        if isinstance(module, tuple(SOLVED)):
            module.solver = solver  # type: ignore[assignment]
    return twin


def solvers_of(flow: Flow, device: torch.device) -> list[str]:
    """The backends that serve its mixing layers here; a dash if they need none."""
    names = {name for module in flow.modules() for kind in SOLVED if isinstance(module, kind) for name in SOLVED[kind]}
    fast = [name for name in BACKENDS if name in names and name != "reference"]
    return [name for name in fast if find_backend(name).unavailable(device) is None] or ["-"]


def make_rows(data: Data, options: argparse.Namespace, device: torch.device) -> dict[tuple[str, str], Flow]:
    """The models by name and solver."""
    rows = {}
    for name in options.models:
        width, num_steps = options.width or WIDTHS.get(name, 512), options.num_steps or data.num_steps
        flow = Flow(data.image_shape, mixing(name), AffineCoupling, data.num_levels, num_steps, width)
        flow.to(device).eval()
        solvers = solvers_of(flow, device)
        if solvers != ["-"]:
            solvers = [solver for solver in solvers if options.solvers is None or solver in options.solvers]
        rows.update({(name, solver): with_solver(flow, solver) for solver in solvers})
    return rows


def measure(
    rows: dict[tuple[str, str], Flow], batch: int, options: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """All rows of one batch size."""
    first = next(iter(rows.values()))
    latents = first.sample_latents(batch, options.temperature, torch.Generator().manual_seed(0))
    candidates = {f"{name} {solver}": partial(flow.decode, latents) for (name, solver), flow in rows.items()}
    best = fastest_of_many(candidates, seconds=options.seconds, device=device, min_rounds=options.rounds)
    reference = next(iter(best.values()))
    results: list[dict[str, object]] = []
    for name in options.models:
        times = {solver: best[f"{name} {solver}"] for row, solver in rows if row == name}
        if options.naive and "-" not in times:
            flow = next(flow for (row, _), flow in rows.items() if row == name)
            times = {"naive": reference + seconds_of_naive_layers(flow, batch, device), **times}
        for solver, seconds in times.items():
            results.append(
                {
                    "model": name,
                    "solver": solver,
                    "batch": batch,
                    "seconds": seconds,
                    "ms_per_image": 1000 * seconds / batch,
                    "ratio": seconds / reference,
                    "extrapolated": solver == "naive",
                }
            )
    return results


def as_row(result: dict, fastest: str) -> list[str]:
    """One line of the table; ``fastest`` is the solver that the bars are meant for."""
    bar = BARS.get((result["model"], result["batch"]), float("inf"))
    missed = result["solver"] == fastest and result["bars_apply"] and result["ratio"] > bar
    return [
        result["data"],
        result["model"],
        result["solver"],
        str(result["batch"]),
        ("~" if result["extrapolated"] else "") + format_time(result["seconds"]),
        f"{result['ms_per_image']:.3g}",
        f"{result['ratio']:.3f}x{'!' if missed else ''}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--models", nargs="+", choices=MIXINGS, default=["conv1x1", "maf", "emerging"], help="ratios are to the first"
    )
    parser.add_argument("--solvers", nargs="+", choices=[*BACKENDS], help="default: all that run but reference")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--num-steps", type=int, help="D; default: the paper's")
    parser.add_argument("--width", type=int, help="of the coupling networks; default: the paper's")
    parser.add_argument("--temperature", type=float, default=0.7)
    add_device(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each batch size, besides the naive rows")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row, at least")
    parser.add_argument("--naive", action="store_true", help="time naive layers, too (minutes for each batch size)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = pick_device(options)
    fastest = "cuda" if device.type == "cuda" else "compiled"
    if fastest == "compiled" and CompiledSolver.unavailable(device) is not None:
        fastest = "torch"

    machine = show_machine(device)
    results = []
    started = time.perf_counter()
    with torch.inference_mode():
        for name in options.data:
            rows = make_rows(DATA[name], options, device)
            for batch in options.batches:
                say(f"{name}, batch {batch} ...")
                whole = options.num_steps is None and options.width is None and options.models[0] == "conv1x1"
                for result in measure(rows, batch, options, device):
                    bars_apply = name == "cifar10" and device.type == "cpu" and whole
                    results.append({"data": name, **result, "bars_apply": bars_apply})
            rows.clear()
    say(f"measured for {time.perf_counter() - started:.0f} s")
    header = ["data", "model", "solver", "batch", "a batch", "ms/image", f"to {options.models[0]}"]
    conclude(options.output, header, [as_row(result, fastest) for result in results], machine=machine, results=results)


if __name__ == "__main__":
    run(main)
