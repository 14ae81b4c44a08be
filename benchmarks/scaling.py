"""Time a step of training that one, two, ... processes share, each with one thread.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --processes 1 2 4 --batch 64 --num-steps 8 --width 256 --output scaling.json
    python -m benchmarks.scaling --device cuda --processes 1 2 4 8 --batch 512 --width 512

The batch is divided among the processes, as in training; the speed-up is that over the first row, the efficiency that
by the number of processes. The column "compute" is a process's share of the batch alone, at the same time as the others
but without a word to them: what it takes less is the cost of averaging the gradients and of waiting for each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.program import conclude, format_time, new_parser, say, show_machine
from benchmarks.program import run as run_program
from benchmarks.training import add_model, make_model
from flows import Flow, InputError
from flows.config.mixings import MIXINGS
from flows.numerics import in_precision


class Loss(nn.Module):
    """Bits/dim of a batch, as a module whose gradients can be averaged over processes."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.flow.bits_per_dim(images).mean()


def device_of(rank: int, options: argparse.Namespace) -> torch.device:
    """Each process has a GPU of its own, or a core."""
    return torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")


def make_steps(options: argparse.Namespace, rank: int, num_processes: int) -> dict[str, Callable[[], None]]:
    """A step with the others, and one that does all but average the gradients."""
    device = device_of(rank, options)
    flow, images = make_model(options.mixing, options, device)
    images = images[rank::num_processes]
    model = DistributedDataParallel(Loss(flow), broadcast_buffers=False)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-3)

    def step(together: bool) -> None:
        optimizer.zero_grad()
        with nullcontext() if together else model.no_sync(), in_precision(options.precision, device):
            model(images).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {"step": lambda: step(True), "compute": lambda: step(False)}


def measure(rank: int, num_processes: int, port: int, options: argparse.Namespace) -> dict[str, float]:
    """One of the processes: seconds that each kind of step takes at best, the slowest process counting."""
    torch.set_num_threads(1)
    # Its successor does not exist before torch 2.13.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    dist.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=num_processes,
        timeout=timedelta(minutes=10),
    )
    steps = make_steps(options, rank, num_processes)
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            dist.barrier()
            started = time.perf_counter()
            step()
            taken = torch.tensor(time.perf_counter() - started, device=device_of(rank, options))
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            best[name] = min(best[name], taken.item())
    dist.destroy_process_group()
    return best


def run(num_processes: int, options: argparse.Namespace) -> dict[str, float]:
    """Start the processes and return what the first one measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        arguments = [(rank, num_processes, port, options) for rank in range(num_processes)]
        return pool.starmap(measure, arguments, chunksize=1)[0]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mixing", choices=MIXINGS, default="emerging")
    add_model(parser, batch=32)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=10, help="steps that are timed; the fastest counts")
    options = parser.parse_args(arguments)
    undivided = [number for number in options.processes if options.batch % number]
    if undivided:
        raise InputError(f"a batch of {options.batch} cannot be divided among {undivided[0]} processes")

    machine = show_machine(torch.device(options.device))
    results = []
    for number in options.processes:
        say(f"{number} process{'es' if number > 1 else ''} ...")
        best = run(number, options)
        first = results[0] if results else {"processes": number, "seconds": best["step"]}
        speed_up = first["seconds"] / best["step"]
        results.append(
            {
                "processes": number,
                "seconds": best["step"],
                "compute_seconds": best["compute"],
                "images_per_second": options.batch / best["step"],
                "speed_up": speed_up,
                "efficiency": speed_up * first["processes"] / number,
            }
        )
    header = ["processes", "a step", "of it compute", "images/s", "speed-up", "efficiency"]
    rows = [
        [
            row["processes"],
            format_time(row["seconds"]),
            format_time(row["compute_seconds"]),
            f"{row['images_per_second']:.3g}",
            f"{row['speed_up']:.2f}x",
            f"{row['efficiency']:.0%}",
        ]
        for row in results
    ]
    setting = {key: value for key, value in vars(options).items() if key not in ("output", "processes")}
    conclude(options.output, header, rows, machine=machine, setting=setting, results=results)


if __name__ == "__main__":
    run_program(main)
