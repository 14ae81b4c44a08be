"""What the benchmarks have in common as programs: options, how far they are, what they print and write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from flows import InputError
from flows.files import atomic_write
from flows.measures.timing import describe_machine
from flows.processes.memory import keep_freed_memory


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Options of those that run in one process; :func:`pick_device` obeys them."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: torch's")


def pick_device(options: argparse.Namespace) -> torch.device:
    """The device that was asked for, with as many threads."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def show_machine(device: torch.device) -> dict[str, object]:
    """What the figures depend on besides the code: printed, and returned to be written."""
    machine = describe_machine(device)
    print(*(f"{key}: {value}" for key, value in machine.items()), sep="\n", end="\n\n", flush=True)
    return machine


def say(progress: str) -> None:
    """How far this is, on stderr: on a terminal in place of what was said before, in a file on a line of its own."""
    before, after = ("\r", "") if sys.stderr.isatty() else ("", "\n")
    print(f"{before}{progress:<60}" if before else progress, end=after, file=sys.stderr, flush=True)


def conclude(output: Path | None, header: Sequence[str], rows: Sequence[Sequence[object]], **content: object) -> None:
    """Print the table, and write everything to a file if there shall be one."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(format_table(header, rows))
    if output:
        with atomic_write(output) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest entry, the first aligned left and the others right."""
    lines = [[str(entry) for entry in row] for row in (header, *rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0])] + [line[n].rjust(widths[n]) for n in range(1, len(line))])
        for line in lines
    )


def format_time(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, scale in (("us", 1e6), ("ms", 1e3), ("s", 1.0)):
        if seconds * scale < 1000 or unit == "s":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def run(main: Callable[[], None]) -> None:
    """A benchmark from its start to its end, with memory as programs have it; a mistake of the user's is one line."""
    keep_freed_memory()
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
