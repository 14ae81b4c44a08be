"""Everything that only a GPU can show, in one run that ends by itself. It needs torch and numpy, and no network.

    python -m benchmarks.gpu --minutes 10 --output gpu.json
    python -m benchmarks.gpu --device cpu --minutes 0.5

Each row is a figure, with its target where there is one; ``!`` marks a figure beyond it. A row that fails says why, the
others go on, and the exit status is 1. Rows whose turn comes after the time is up are left out and say so. On a CPU the
same rows run small, to show that they run; nothing is judged there. Times are minima.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from benchmarks import scaling
from benchmarks.inverse import random_filter
from benchmarks.program import add_device, conclude, new_parser, pick_device, run, say, show_machine
from benchmarks.sampling import seconds_of_naive_layers
from benchmarks.training import peak_of_pass, step_of
from flows import Flow
from flows.config.mixings import MIXINGS, mixing
from flows.layers import AffineCoupling
from flows.measures.timing import fastest_of_many
from flows.models.memory import Memory
from flows.numerics import Precision
from flows.solvers import BACKENDS, find_backend, prepare_autoregressive_conv


@dataclass(frozen=True)
class Size:
    """How large the rows are: ``batch`` of a step, ``samples`` at a time."""

    num_levels: int
    num_steps: int
    few_steps: int
    width: int
    image_size: int
    batch: int
    samples: int
    seconds: float


SIZES = {"cuda": Size(3, 32, 4, 512, 32, 64, 256, 2.0), "cpu": Size(2, 2, 1, 8, 8, 2, 2, 0.0)}


@dataclass
class Row:
    """One figure.

    Attributes:
        at_most: whether the target is an upper bound.
    """

    what: str
    unit: str = ""
    figure: float | None = None
    target: float | None = None
    at_most: bool = True
    note: str = ""
    failed: bool = False

    @property
    def is_missed(self) -> bool:
        if self.figure is None or self.target is None:
            return False
        return self.figure > self.target if self.at_most else self.figure < self.target


Measured = tuple[Row, Callable[[], float]]
"""A row without its figure, and what measures that."""


class Bench:
    """The rows, for one device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.size = device, SIZES["cuda" if device.type == "cuda" else "cpu"]
        self.seconds: dict[str, float] = {}  # of steps that later rows compare with

    def rows(self) -> Iterator[Measured]:
        """Those that decide most come first."""
        yield from self.solvers()
        yield from self.sampling()
        yield from self.precisions()
        yield from self.mixings()
        yield from self.memory()
        yield from self.table5()
        yield from self.processes()
        yield Row("tests that need a GPU", "failed", target=0), self.tests

    # -- inverses ------------------------------------------------------------------------------------------------------

    def solvers(self) -> Iterator[Measured]:
        """Each backend against the dense solve in float64."""
        for channels, side in ((12, 16), (24, 8), (48, 4)):
            for name in BACKENDS:
                if name != "reference" and find_backend(name).unavailable(self.device) is None:
                    row = Row(f"solver {name}, {side} x {side} x {channels}", "relative error", target=1e-5)
                    yield row, partial(self.error_of_solver, name, channels, side)

    def error_of_solver(self, name: str, channels: int, side: int) -> float:
        """Largest error relative to the largest answer."""
        weight, z = random_filter(channels), torch.randn(4, channels, side, side)
        prepare = partial(prepare_autoregressive_conv, direction="lower", image_size=(side, side))
        exact = prepare(weight.double(), backend="reference")(z.double())
        found = prepare(weight.to(self.device), backend=name)(z.to(self.device)).cpu()
        return float((found - exact).abs().max() / exact.abs().max())

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sampling(self) -> Iterator[Measured]:
        for batch, target in ((self.size.samples, 1.25), (1, None)):
            what = f"sampling, emerging : 1x1, batch {batch}"
            yield Row(what, "x", target=target), partial(self.sampling_ratio, batch)

    def sampling_ratio(self, batch: int) -> float:
        best = self.seconds_of_decoding(["conv1x1", "emerging"], batch)
        return best["emerging"] / best["conv1x1"]

    def table5(self) -> Iterator[Measured]:
        """The paper has 5, 650 and 39 ms, and naive 5, 3000 and 1800, on hardware that it does not name."""
        for name in ("conv1x1", "maf", "emerging"):
            yield Row(f"table 5, {name}", "ms per image"), partial(self.milliseconds, name)
            if name != "conv1x1":
                yield Row(f"table 5, {name}, naive", "ms per image"), partial(self.naive_milliseconds, name)

    def milliseconds(self, name: str) -> float:
        return 1000 * self.seconds_of_decoding([name], self.size.samples)[name] / self.size.samples

    @torch.inference_mode()
    def naive_milliseconds(self, name: str) -> float:
        """One naive layer of each level, counted for all, on top of the couplings."""
        batch = self.size.samples
        naive = seconds_of_naive_layers(self.flow(name), batch, self.device)
        return self.milliseconds("conv1x1") + 1000 * naive / batch

    @torch.inference_mode()
    def seconds_of_decoding(self, names: list[str], batch: int) -> dict[str, float]:
        flows = {name: self.flow(name) for name in names}
        latents = flows[names[0]].sample_latents(batch, 0.7, torch.Generator().manual_seed(0))
        decoding = {name: partial(flow.decode, latents) for name, flow in flows.items()}
        return fastest_of_many(decoding, seconds=self.size.seconds, device=self.device)

    # -- a step of training --------------------------------------------------------------------------------------------

    def precisions(self) -> Iterator[Measured]:
        """The 1x1 and the emerging model in every precision, eager, compiled and as a CUDA graph, against exact."""
        for name in ("conv1x1", "emerging"):
            for how in ("eager", "compiled", "graph"):
                for precision in get_args(Precision):
                    if how == "graph" and self.device.type != "cuda":
                        continue
                    is_goal = name == "conv1x1" and (how, precision) == ("compiled", "bf16")
                    row = Row(f"step, {name}, {precision}, {how}", "x exact, eager", target=3.0 if is_goal else None)
                    row.at_most = False
                    yield row, partial(self.speed_up, name, precision, how)

    def speed_up(self, name: str, precision: Precision, how: str) -> float:
        exact = self.seconds_of_step(name, "exact", "eager")
        return exact / self.seconds_of_step(name, precision, how)

    def mixings(self) -> Iterator[Measured]:
        row = Row("step, emerging : 1x1, bf16, compiled", "x", target=1.05)
        yield row, partial(self.ratio_of_steps, "emerging", "bf16", "compiled")
        for name in MIXINGS:
            if name != "conv1x1":
                row = Row(f"step, {name} : 1x1", "x", target=1.05 if name == "emerging" else None)
                yield row, partial(self.ratio_of_steps, name, "exact", "eager")

    def ratio_of_steps(self, name: str, precision: Precision, how: str) -> float:
        return self.seconds_of_step(name, precision, how) / self.seconds_of_step("conv1x1", precision, how)

    def seconds_of_step(self, name: str, precision: Precision, how: str) -> float:
        key = f"{name} {precision} {how}"
        if key not in self.seconds:
            step = self.step(self.flow(name), precision, how)
            best = fastest_of_many({key: step}, seconds=self.size.seconds, device=self.device)
            self.seconds.update(best)
        return self.seconds[key]

    def step(self, flow: Flow, precision: Precision, how: str) -> Callable[[], object]:
        """Forward, backward and Adamax."""
        if how == "compiled":
            torch.compiler.reset()  # each row starts anew
            flow.compile_parts(backend="inductor" if self.device.type == "cuda" else "eager")
        step = step_of(flow, self.images(), precision, capturable=how == "graph")
        return captured(step) if how == "graph" else step

    # -- memory --------------------------------------------------------------------------------------------------------

    def memory(self) -> Iterator[Measured]:
        for mode in get_args(Memory):
            target = None if mode == "store" else 1.3
            what = f"memory of activations, {mode}, D {self.size.num_steps} : D {self.size.few_steps}"
            yield Row(what, "x", target=target), partial(self.growth, mode)
            if mode != "store":
                row = Row(f"step, {mode} : store", "x", target=1.4 if mode == "recompute" else 1.6)
                yield row, partial(self.time_of_mode, mode)

    def growth(self, mode: Memory) -> float:
        deep, shallow = (self.activations(mode, depth) for depth in (self.size.num_steps, self.size.few_steps))
        return deep / shallow

    def activations(self, mode: Memory, num_steps: int) -> float:
        """Bytes at the peak of a step, without parameters, gradients and optimiser."""
        flow = self.flow("emerging", num_steps)
        flow.memory = mode
        return peak_of_pass(flow, self.images(), "exact")

    def time_of_mode(self, mode: Memory) -> float:
        flow = self.flow("emerging")
        steps = {}
        modes: tuple[Memory, Memory] = ("store", mode)
        for each in modes:
            twin = self.flow("emerging")
            twin.load_state_dict(flow.state_dict())
            twin.memory = each
            steps[each] = self.step(twin, "exact", "eager")
        best = fastest_of_many(steps, seconds=self.size.seconds, device=self.device)
        return best[mode] / best["store"]

    # -- several GPUs, and the tests -----------------------------------------------------------------------------------

    def processes(self) -> Iterator[Measured]:
        if self.device.type != "cuda" or torch.cuda.device_count() > 1:
            yield Row("two processes : one", "x", at_most=False), self.two_processes

    def two_processes(self) -> float:
        size = self.size
        options = argparse.Namespace(
            mixing="emerging", num_levels=size.num_levels, num_steps=size.few_steps, width=size.width,
            image_size=size.image_size, batch=size.batch, precision="exact", device=self.device.type, rounds=3,
        )  # fmt: skip
        one, two = (scaling.run(number, options)["step"] for number in (1, 2))
        return one / two

    def tests(self) -> float:
        """Number of tests that failed; those that need no GPU are left to the suite."""
        root = Path(__file__).parents[1]
        missing = [name for name in ("pytest", "xdist") if importlib.util.find_spec(name) is None]
        if missing or not (root / "tests").exists():
            raise ModuleNotFoundError(f"needs the tests of the repository, and {' and '.join(missing) or 'nothing'}")
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
        if result.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {result.returncode}: {result.stdout[-300:]}")
        return float(sum(line.startswith("FAILED") for line in result.stdout.splitlines()))

    # -- models --------------------------------------------------------------------------------------------------------

    def flow(self, name: str, num_steps: int | None = None) -> Flow:
        """A model with this mixing layer, initialised: the same at every call."""
        torch.manual_seed(0)
        steps = self.size.num_steps if num_steps is None else num_steps
        width = 462 if name.startswith("maf") and self.size.width == 512 else self.size.width  # as in the paper
        images = self.images()
        shape = (images.shape[1], images.shape[2], images.shape[3])
        flow = Flow(shape, mixing(name), AffineCoupling, self.size.num_levels, steps, width).to(self.device)
        flow.initialize(images)
        return flow

    def images(self) -> Tensor:
        side, generator = self.size.image_size, torch.Generator().manual_seed(0)
        images = torch.randint(256, (self.size.batch, 3, side, side), generator=generator, dtype=torch.uint8)
        return images.to(self.device)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The step as one CUDA graph, after three that warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measured(rows: Iterator[Measured], until: float) -> Iterator[Row]:
    """Every row with its figure, or with the reason why there is none."""
    for row, measure in rows:
        if time.perf_counter() > until:
            row.note = "no time was left"
        else:
            say(f"{row.what} ...")
            try:
                row.figure = measure()
            except Exception as error:  # one row must not cost the others: the table says it, and the exit status
                row.note, row.failed = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}", True
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        yield row


def as_line(row: Row, is_judged: bool) -> list[str]:
    sign = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"
    figure = row.note if row.figure is None else f"{row.figure:.3g}{'!' if is_judged and row.is_missed else ''}"
    return [row.what, figure, sign, row.unit]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="no row starts after so much time")
    add_device(parser)
    options = parser.parse_args(arguments)
    device = pick_device(options)
    machine = show_machine(device)
    rows = list(measured(Bench(device).rows(), time.perf_counter() + 60 * options.minutes))
    lines, results = [as_line(row, device.type == "cuda") for row in rows], [asdict(row) for row in rows]
    conclude(options.output, ["row", "figure", "target", "unit"], lines, machine=machine, results=results)
    if any(row.failed for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
