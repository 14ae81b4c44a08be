"""Time one step of training - forward, backward, Adamax - for every mixing layer, and measure its memory.

    python -m benchmarks.training
    python -m benchmarks.training --mixing conv1x1 emerging --num-steps 32 --width 512 --batch 64 --output training.json
    python -m benchmarks.training --mixing conv1x1 emerging --width 512 --batch 4 --depth 4 32
    python -m benchmarks.training --mixing emerging periodic --match conv1x1@64

Behind each time stands its ratio to the first row, and its share of the machine's peak: the operations of its products
and convolutions, over those of a large matrix product in as much time. ``textbook`` is Glow in eager PyTorch as others
write it (:mod:`benchmarks.textbook`). The memory is the most that a process of its own held during one
step beyond what it held before there was a model; on a GPU, the most that was allocated there.

``--depth`` compares the modes of ``model.memory`` at some numbers of steps per level. Its memory is the most that one
pass forward and backward allocates at once: parameters, gradients and the optimiser's state are there before it.

``--match MIXING@WIDTH`` finds for each mixing layer the width of the coupling networks at which a step takes as long as
one of that model. Steps of both take turns; the ratio at the width found is measured anew, for twice as long, and ``!``
marks one that is off by more than 2 %. Beside other programs take ``--threads 1`` and more ``--seconds``: with as many
threads as cores, a step waits for whatever else runs, and the search follows that noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.program import add_device, conclude, format_time, new_parser, pick_device, run, say, show_machine
from benchmarks.textbook import TextbookGlow
from flows import Flow
from flows.config.mixings import MIXINGS, mixing
from flows.layers import AffineCoupling
from flows.measures.budget import width_of_equal_time
from flows.measures.cost import flops_per_image
from flows.measures.diagnostics import count_parameters
from flows.measures.timing import fastest_of_many
from flows.models.base import DensityModel
from flows.models.memory import Memory
from flows.numerics import Precision, in_precision

TEXTBOOK = "textbook"
PRODUCT = 2048
"""Rows and columns of the matrices whose product tells the machine's peak."""
TOLERANCE = 0.02
"""Of the ratio of two times that are to be equal."""


def add_model(parser: argparse.ArgumentParser, batch: int) -> None:
    """Options of the model that is trained, and of its images: ``batch`` in a step unless something else is given."""
    parser.add_argument("--num-levels", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=batch, help="images in a step")
    parser.add_argument("--precision", choices=get_args(Precision), default="exact", help="of a step")


def with_options(options: argparse.Namespace, **changed: object) -> argparse.Namespace:
    """The same options but for those that are ``changed``."""
    return argparse.Namespace(**{**vars(options), **changed})


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
    if name != TEXTBOOK:
        return step_of(*make_model(name, options, device), options.precision)
    shape = (3, options.image_size, options.image_size)
    glow = TextbookGlow(shape, options.num_levels, options.num_steps, options.width).to(device)
    return step_of(glow, torch.randint(0, 256, (options.batch, *shape)).to(device, torch.uint8), options.precision)


def step_of(
    flow: DensityModel | TextbookGlow, images: torch.Tensor, precision: Precision, *, capturable: bool = False
) -> Callable[[], None]:
    """One step of a model's training; ``capturable`` as part of a CUDA graph."""
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-3, capturable=capturable)

    def step() -> None:
        optimizer.zero_grad()
        with in_precision(precision, images.device):
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
    if name != TEXTBOOK:
        mixing(name)  # reads its configuration before a step, not in one
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(name, options)
    for _ in range(2):  # the second has the optimiser's state besides the gradients
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def peak_of_pass(flow: Flow, images: torch.Tensor, precision: Precision) -> int:
    """Bytes that one pass forward and backward allocates at once, gradients left out."""
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def forward_and_backward() -> None:
        with in_precision(precision, images.device):
            flow.bits_per_dim(images).mean().backward()

    if images.is_cuda:
        forward_and_backward()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        forward_and_backward()
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    # Counted from the start of the recording, and exact: every tensor's memory, not what the process has of the system.
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def compare_modes(options: argparse.Namespace, device: torch.device, machine: dict[str, object]) -> None:
    """Time and memory of each mode for each mixing layer and depth."""
    results: list[dict[str, object]] = []
    rows = []
    least: dict[tuple[str, Memory], int] = {}
    for name in options.mixing:
        for depth in options.depth:
            flow, images = make_model(name, with_options(options, num_steps=depth), device)
            step = step_of(flow, images, options.precision)

            def step_in(memory: Memory, flow: Flow = flow, step: Callable[[], None] = step) -> None:
                flow.memory = memory
                step()

            say(f"{name} with {depth} steps ...")
            modes = get_args(Memory)
            seconds = options.seconds / len(options.mixing) / len(options.depth)
            best = fastest_of_many({mode: partial(step_in, mode) for mode in modes}, seconds=seconds, device=device)
            for mode in modes:
                flow.memory = mode
                peak = peak_of_pass(flow, images, options.precision)
                growth = peak / least.setdefault((name, mode), peak)
                ratio = best[mode] / best["store"]
                results.append(
                    {
                        "mixing": name,
                        "memory": mode,
                        "depth": depth,
                        "seconds": best[mode],
                        "ratio": ratio,
                        "bytes": peak,
                    }
                )
                shown = [format_time(best[mode]), f"{ratio:.3f}x", f"{peak / 2**20:.1f} MiB", f"{growth:.3f}x"]
                rows.append([name, depth, mode, *shown])
    header = ["mixing", "D", "memory", "a step", "to store", "beyond the weights", f"to D {options.depth[0]}"]
    setting = {key: value for key, value in vars(options).items() if key not in ("output", "mixing", "num_steps")}
    conclude(options.output, header, rows, machine=machine, setting=setting, results=results)


def mixing_at_width(text: str) -> tuple[str, int]:
    """``MIXING@WIDTH`` of the command line."""
    name, _, width = text.partition("@")
    if name not in MIXINGS or not width.isdecimal() or int(width) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIXING@WIDTH, like conv1x1@64, with one of {MIXINGS}")
    return name, int(width)


def match_times(options: argparse.Namespace, device: torch.device, machine: dict[str, object]) -> None:
    """The width of each mixing layer at which a step takes as long as the reference's."""
    reference, reference_width = options.match

    def step_at(name: str, width: int) -> Callable[[], None]:
        return step_of(*make_model(name, with_options(options, width=width), device), options.precision)

    reference_step = step_at(reference, reference_width)

    def compare(name: str, width: int, seconds: float) -> tuple[float, float]:
        """Seconds of a step, and their ratio to the reference's."""
        say(f"{name} at width {width} ...")
        steps = {"this": step_at(name, width), "reference": reference_step}
        best = fastest_of_many(steps, seconds=seconds, device=device)
        return best["this"], best["this"] / best["reference"]

    results, rows, notes = [], [], []
    for name in options.mixing:
        if name == TEXTBOOK:  # which no run can be told to use
            continue

        def ratio_at(width: int, name: str = name) -> float:
            return compare(name, width, options.seconds / 8)[1]

        found = width_of_equal_time(ratio_at, reference_width, TOLERANCE)
        seconds, ratio = compare(name, found or 1, options.seconds / 4)
        parameters = count_parameters(make_model(name, with_options(options, width=found or 1), device)[0])
        results.append({"mixing": name, "width": found, "seconds": seconds, "ratio": ratio, "parameters": parameters})
        missed = found is not None and abs(ratio - 1) > TOLERANCE
        rows.append([name, found or "none", format_time(seconds), f"{ratio:.3f}x{'!' * missed}", f"{parameters:,}"])
        if not found:
            notes.append(
                f"{name}: at no width; a step takes {ratio:.2f} times as long even at width 1, which is shown."
            )
    setting = {key: value for key, value in vars(options).items() if key not in ("output", "mixing", "width", "depth")}
    header = ["mixing", "width", "a step", f"to {reference}@{reference_width}", "parameters"]
    conclude(options.output, header, rows, machine=machine, setting=setting, results=results)
    for note in notes:
        print(note)
    for result in [result for result in results if result["width"]][-1:]:  # the last one is as good as any
        print(
            f"To train one: python train.py mixing={result['mixing']} model.hidden_channels={result['width']}"
            f" model.num_levels={options.num_levels} model.num_steps={options.num_steps}"
            f" data.batch_size={options.batch} precision={options.precision}"
        )


def operations(name: str, options: argparse.Namespace) -> int:
    """Of a step, per image; those of the textbook are the 1x1 model's."""
    flow, _ = make_model("conv1x1" if name == TEXTBOOK else name, options, torch.device(options.device))
    return flops_per_image(flow)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = new_parser(__doc__)
    rows = sorted([*MIXINGS, TEXTBOOK], key=lambda name: name not in ("conv1x1", TEXTBOOK))
    parser.add_argument("--mixing", nargs="+", choices=rows, default=rows, help="ratios are to the first")
    add_model(parser, batch=16)
    add_device(parser)
    parser.add_argument("--depth", type=int, nargs="+", help="compare the modes of memory at these numbers of steps")
    parser.add_argument(
        "--match",
        type=mixing_at_width,
        metavar="MIXING@WIDTH",
        help="find the widths of equal time, instead of --width",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="time for all rows together; with --match about that of each row"
    )
    options = parser.parse_args(arguments)
    device = pick_device(options)

    machine = show_machine(device)
    if options.depth:
        return compare_modes(options, device, machine)
    if options.match:
        return match_times(options, device, machine)
    started = time.perf_counter()
    memory = {}
    for name in options.mixing:
        say(f"memory of {name} ...")
        with multiprocessing.get_context("spawn").Pool(1) as process:
            memory[name] = process.apply(peak_memory, (name, options))
    say("times of all ...")
    steps = {name: make_step(name, options) for name in options.mixing}
    matrix = torch.randn(PRODUCT, PRODUCT, device=device)
    best = fastest_of_many({**steps, "product": lambda: matrix @ matrix}, seconds=options.seconds, device=device)
    peak = 2 * PRODUCT**3 / best.pop("product")
    say(f"measured for {time.perf_counter() - started:.0f} s")

    results = [
        {
            "mixing": name,
            "seconds": seconds,
            "images_per_second": options.batch / seconds,
            "ratio": seconds / best[options.mixing[0]],
            "share_of_peak": options.batch * operations(name, options) / seconds / peak,
            "peak_bytes": memory[name],
        }
        for name, seconds in best.items()
    ]
    header = ["mixing", "a step", f"to {options.mixing[0]}", "of peak", "images/s", "peak memory"]
    rows = [
        [
            result["mixing"],
            format_time(result["seconds"]),
            f"{result['ratio']:.3f}x",
            f"{result['share_of_peak']:.0%}",
            f"{result['images_per_second']:.3g}",
            f"{result['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for result in results
    ]
    setting = {key: value for key, value in vars(options).items() if key not in ("output", "mixing")}
    conclude(options.output, header, rows, machine=machine, setting=setting, results=results)


if __name__ == "__main__":
    run(main)
