"""How a data set is converted, once, to a prepared set (:mod:`datamodules.prepared_sets`).

The set comes into being as ``cifar10.preparing/`` and is renamed when complete, so that whatever carries the final name
is whole. What a killed conversion had finished is listed in a journal there and not done again. A lock lets one process
convert while the others wait. A conversion that fails (a broken source, a full disk) removes its folder; sources are
only ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from datamodules.archives import file_digest
from datamodules.prepared_sets import FORMAT, MANIFEST, npy_header
from flows.console import progress
from flows.errors import InputError, StorageError
from flows.files import atomic_write

JOURNAL, WORK = "journal.json", ".preparing"

SECONDS_BETWEEN_JOURNALS = 1.0
"""At most this much work is lost by a kill."""


class Chunk(Protocol):
    """Some consecutive images of a split, and how to read them: the unit of work that a kill may cost.

    Reading yields blocks of uint8 ``(n, 3, H, W)`` or ``(n, C, H, W)``, ``count`` images in all, each with a count of
    what had to be converted on the way. A chunk is sent to another process to be read there.
    """

    @property
    def count(self) -> int: ...

    def blocks(self) -> Iterator[tuple[NDArray[np.uint8], Counter[str]]]: ...


@dataclass(frozen=True)
class Plan:
    """What a prepared set will hold.

    Args:
        shape: of an image, ``(C, H, W)``.
        splits: the chunks of each split, in order.
        source: plain data about where the images come from, for the manifest; a conversion is only taken up again
            where this is the same.
    """

    shape: tuple[int, int, int]
    splits: Mapping[str, Sequence[Chunk]]
    source: Mapping[str, Any]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {split: sum(chunk.count for chunk in chunks) for split, chunks in self.splits.items()}

    @cached_property
    def fingerprint(self) -> str:
        counts = {split: [chunk.count for chunk in chunks] for split, chunks in self.splits.items()}
        content = json.dumps([FORMAT, self.shape, counts, self.source], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def prepare(folder: Path, plan: Callable[[Path], Plan], num_processes: int | None = None) -> None:
    """Convert a set, unless another process has done so meanwhile; wait for one that is at it.

    Args:
        folder: where the prepared set will be.
        plan: looks at the source and says how it is converted; given a folder for what must be unpacked.
        num_processes: that convert, at least 1; ``None`` uses every processor that this one may run on.

    Raises:
        InputError: the source cannot be used.
        StorageError: the disk is full or refuses; nothing is left behind.
    """
    with _locked(folder):
        if (folder / MANIFEST).exists():
            return
        if folder.exists():
            raise InputError(f"{folder} is in the way: it holds no {MANIFEST}, so it is no prepared set; move it away")
        work = folder.with_name(folder.name + WORK)
        try:
            work.mkdir(exist_ok=True)
            _convert(folder.name, plan(work / "scratch"), work, num_processes)
            shutil.rmtree(work / "scratch", ignore_errors=True)
            (work / JOURNAL).unlink(missing_ok=True)
            os.rename(work, folder)
            _sync(folder.parent)
        except (InputError, StorageError):
            shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise StorageError(f"cannot prepare {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a prepared set; the system lets go of it when the holder ends, however it ends."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for the process that prepares {folder}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write to {folder.parent}: {reason}; choose another data.prepared_dir") from error
    try:
        yield
    finally:
        lock.release()


def _convert(name: str, plan: Plan, work: Path, num_processes: int | None) -> None:
    """Fill the arrays and write the manifest into the folder ``work``."""
    for split, size in plan.sizes.items():
        if size == 0:
            raise InputError(f"the {split} split of {name} would be empty")
    needed = sum(plan.sizes.values()) * int(np.prod(plan.shape))
    done, found = _journal_of(work, plan)
    if not done:
        _require_room(work, needed)
        for split, size in plan.sizes.items():
            _allocate(work / f"{split}.npy", (size, *plan.shape))
    tasks = {
        f"{split}:{number}": (str(work / f"{split}.npy"), start, chunk, plan.shape)
        for split, chunks in plan.splits.items()
        for number, (start, chunk) in enumerate(_starts(chunks))
    }
    already = sum(tasks[task][2].count for task in done)
    if already:
        print(f"taking up again: {already:,} of {sum(plan.sizes.values()):,} images are there", file=sys.stderr)
    journal = _Journal(work, plan, done, found)
    remaining = {task: tasks[task] for task in tasks if task not in done}
    processes = min(num_processes or _usable_processors(), len(remaining))
    run = _run_here(remaining) if processes <= 1 else _run_in_processes(remaining, processes)
    with contextlib.closing(run), progress(f"preparing {name}", sum(plan.sizes.values())) as advance:
        advance(already)
        for task, converted in run:
            journal.add(task, converted)
            advance(tasks[task][2].count)
    journal.write()
    splits = {
        split: {
            "file": f"{split}.npy",
            "shape": [size, *plan.shape],
            "dtype": "uint8",
            "sha256": file_digest(work / f"{split}.npy", "sha256"),
        }
        for split, size in plan.sizes.items()
    }
    manifest = {
        "format": FORMAT,
        "name": plan.source["name"],
        "splits": splits,
        "converted": dict(sorted(journal.converted.items())),
        "source": dict(plan.source),
    }
    with atomic_write(work / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=2).encode())


Task = tuple[str, int, Chunk, tuple[int, int, int]]
"""Array file, number of the first image in it, what to read, shape of an image."""


def _run_here(tasks: Mapping[str, Task]) -> Generator[tuple[str, Counter[str]]]:
    for name, task in tasks.items():
        yield name, _write_chunk(*task)


def _run_in_processes(tasks: Mapping[str, Task], processes: int) -> Generator[tuple[str, Counter[str]]]:
    """Convert in several processes; they write into the arrays themselves, only the counts come back.

    They are forked where that is possible, since starting afresh would import torch in each; they run numpy and Pillow
    only.
    """
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    queue, running = iter(tasks.items()), dict[Future, str]()
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        try:
            while True:
                while len(running) < 4 * processes and (entry := next(queue, None)) is not None:
                    running[pool.submit(_write_chunk, *entry[1])] = entry[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a converting process was killed, most often because memory ran out: "
                "run it again with fewer processes (data.num_converters=1)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a converting process: end when the one that started it is gone, even if it was killed."""
    parent = parent_process()

    def watch() -> None:
        assert parent is not None
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_chunk(path: str, first: int, chunk: Chunk, shape: tuple[int, int, int]) -> Counter[str]:
    """Read a chunk and write its images to their place in the array file."""
    converted: Counter[str] = Counter()
    size = int(np.prod(shape))
    count, place = 0, _header_length(path) + first * size
    target = os.open(path, os.O_WRONLY)
    try:
        for block, counts in chunk.blocks():
            images = _with_channels(block, shape[0])
            if images.dtype != np.uint8 or images.shape[1:] != shape or count + len(images) > chunk.count:
                raise InputError(f"a block of {images.dtype} {images.shape} does not fit into {chunk.count} of {shape}")
            _write_all(path, target, images, place + count * size)
            count += len(images)
            converted.update(counts)
    finally:
        os.close(target)
    if count != chunk.count:
        raise InputError(f"{count} images came where {chunk.count} were announced")
    return converted


def _write_all(path: str, target: int, images: NDArray[np.uint8], place: int) -> None:
    rest = np.ascontiguousarray(images).data.cast("B")
    try:
        while rest:
            written = os.pwrite(target, rest, place)
            rest, place = rest[written:], place + written
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _with_channels(images: NDArray[np.uint8], num_channels: int) -> NDArray[np.uint8]:
    """Colour to luminance (ITU-R 601, rounded as Pillow does) or grey to colour, where needed; axis 1 is channels."""
    if images.shape[1] == num_channels:
        return images
    if num_channels == 3:
        return np.repeat(images, 3, axis=1)
    red, green, blue = (images[:, channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[:, None]


class _Journal:
    """The list of finished chunks, written after their images have reached the disk."""

    def __init__(self, work: Path, plan: Plan, done: set[str], converted: Counter[str]) -> None:
        self.work, self.plan, self.done, self.converted = work, plan, done, converted
        self._written = time.monotonic()

    def add(self, name: str, converted: Counter[str]) -> None:
        self.done.add(name)
        self.converted.update(converted)
        if time.monotonic() - self._written > SECONDS_BETWEEN_JOURNALS:
            self.write()

    def write(self) -> None:
        for split in self.plan.splits:
            _sync(self.work / f"{split}.npy")
        content = {"fingerprint": self.plan.fingerprint, "done": sorted(self.done), "converted": self.converted}
        with atomic_write(self.work / JOURNAL) as file:
            file.write(json.dumps(content).encode())
        self._written = time.monotonic()


def _journal_of(work: Path, plan: Plan) -> tuple[set[str], Counter[str]]:
    """What a killed conversion had finished; nothing, if it was of something else."""
    try:
        content = json.loads((work / JOURNAL).read_bytes())
        if content["fingerprint"] == plan.fingerprint:
            return set(content["done"]), Counter(content["converted"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return set(), Counter()


def _starts(chunks: Sequence[Chunk]) -> Iterator[tuple[int, Chunk]]:
    start = 0
    for chunk in chunks:
        yield start, chunk
        start += chunk.count


def _header_length(path: str) -> int:
    with open(path, "rb") as file:
        return 10 + int.from_bytes(file.read(10)[8:10], "little")


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    with open(path, "wb") as file:
        file.write(npy_header(shape))
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)))


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder.parent} has {free / 2**20:,.0f} MiB free, but {needed / 2**20:,.0f} MiB are needed: "
            "make room, or choose another data.prepared_dir"
        )


def _sync(path: Path) -> None:
    target = os.open(path, os.O_RDONLY)
    try:
        os.fsync(target)
    finally:
        os.close(target)


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
