"""Time one step of training - forward, backward, Adamax - for every mixing layer, and measure its memory.

    python -m benchmarks.training
    python -m benchmarks.training --mixing conv1x1 emerging --num-steps 32 --width 512 --batch 64 --output training.json

Behind each time stands its ratio to the first row. The memory is the most that a process of its own held during one
step beyond what it held before there was a model; on a GPU, the most that was allocated there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import get_args

import torch

from benchmarks.program import add_device, conclude, format_time, new_parser, pick_device, run, say, show_machine
from flows import Flow
from flows.config.mixings import MIXINGS, mixing
from flows.layers import AffineCoupling
from flows.measures.timing import fastest_of_many
from flows.numerics import Precision, in_precision


def add_model(parser: argparse.ArgumentParser, batch: int) -> None:
    """Options of the model that is trained, and of its images: ``batch`` in a step unless something else is given."""
    parser.add_argument("--num-levels", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=batch, help="images in a step")
    parser.add_argument("--precision", choices=get_args(Precision), default="exact", help="of a step")


def make_model(name: str, options: argparse.Namespace, device: torch.device) -> tuple[Flow, torch.Tensor]:
    """A flow with this mixing layer, initialised, and random images: the same in every process."""
    torch.manual_seed(0)
    shape = (3, options.image_size, options.image_size)
    flow = Flow(shape, mixing(name), AffineCoupling, options.num_levels, options.num_steps, options.width)
    flow.to(device)
    images = torch.randint(0, 256, (options.batch, *shape)).to(device, torch.uint8)
    flow.initialize(images)
    return flow, images


def make_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """One step of training with random images."""
    device = torch.device(options.device)
    flow, images = make_model(name, options, device)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        with in_precision(options.precision, device):
            flow.bits_per_dim(images).mean().backward()
        optimizer.step()

    return step


def peak_memory(name: str, options: argparse.Namespace) -> int:
    """Bytes, in a process that did nothing else."""
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        make_step(name, options)()
        return torch.cuda.max_memory_allocated()
    import resource  # there is none on Windows

    if options.threads:
        torch.set_num_threads(options.threads)
    mixing(name)  # whose configuration is no part of a step
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(name, options)
    for _ in range(2):  # the second has the optimiser's state besides the gradients
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = new_parser(__doc__)
    first_conv1x1 = sorted(MIXINGS, key=lambda name: name != "conv1x1")
    parser.add_argument("--mixing", nargs="+", choices=MIXINGS, default=first_conv1x1, help="ratios are to the first")
    add_model(parser, batch=16)
    add_device(parser)
    parser.add_argument("--seconds", type=float, default=30.0, help="time for all rows together")
    options = parser.parse_args(arguments)
    device = pick_device(options)

    machine = show_machine(device)
    started = time.perf_counter()
    memory = {}
    for name in options.mixing:
        say(f"memory of {name} ...")
        with multiprocessing.get_context("spawn").Pool(1) as process:
            memory[name] = process.apply(peak_memory, (name, options))
    say("times of all ...")
    steps = {name: make_step(name, options) for name in options.mixing}
    best = fastest_of_many(steps, seconds=options.seconds, device=device)
    say(f"measured for {time.perf_counter() - started:.0f} s")

    results = [
        {
            "mixing": name,
            "seconds": seconds,
            "images_per_second": options.batch / seconds,
            "ratio": seconds / best[options.mixing[0]],
            "peak_bytes": memory[name],
        }
        for name, seconds in best.items()
    ]
    header = ["mixing", "a step", f"to {options.mixing[0]}", "images/s", "peak memory"]
    rows = [
        [
            result["mixing"],
            format_time(result["seconds"]),
            f"{result['ratio']:.3f}x",
            f"{result['images_per_second']:.3g}",
            f"{result['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for result in results
    ]
    setting = {key: value for key, value in vars(options).items() if key not in ("output", "mixing")}
    conclude(options.output, header, rows, machine=machine, setting=setting, results=results)


if __name__ == "__main__":
    run(main)
