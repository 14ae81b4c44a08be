"""How a data set is converted, once, to a prepared set (:mod:`datamodules.preparing.storage`).

The set is written as ``cifar10.preparing/`` and renamed when complete, so that a folder with the final name is whole. A
lock lets one process convert while the others wait. A conversion that fails removes its folder; one that was killed is
started over. Sources are only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from datamodules.preparing.archives import file_digest
from datamodules.preparing.storage import FORMAT, MANIFEST
from flows.console import progress
from flows.errors import InputError, StorageError
from flows.files import atomic_write


class Block(NamedTuple):
    """Some consecutive images: uint8 ``(n, 3, H, W)`` or ``(n, C, H, W)``.

    With a count of what had to be converted on the way, and the class of each, integers ``(n,)``, where there are any.
    """

    images: NDArray[np.uint8]
    converted: Counter[str]
    labels: ArrayLike = ()


class Chunk(Protocol):
    """Some consecutive images of a split, and how to read them: a process's unit of work.

    Reading yields ``count`` images in all. A chunk is sent to another process to be read there.
    """

    @property
    def count(self) -> int: ...

    def blocks(self) -> Iterator[Block]: ...


@dataclass(frozen=True)
class Plan:
    """What a prepared set will hold.

    Args:
        shape: of an image, ``(C, H, W)``.
        splits: the chunks of each split, in order.
        source: plain data about where the images come from, for the manifest.
        classes: what the labels 0, 1, ... are called; then every block has labels.
    """

    shape: tuple[int, int, int]
    splits: Mapping[str, Sequence[Chunk]]
    source: Mapping[str, Any]
    classes: Sequence[str] = ()

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {split: sum(chunk.count for chunk in chunks) for split, chunks in self.splits.items()}


def prepare(folder: Path, plan: Callable[[Path], Plan], num_processes: int | None = None) -> None:
    """Convert a set once; of processes that call this together, one converts and the others wait for it.

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
            raise InputError(
                f"{folder} is in the way: it holds no {MANIFEST}, so it is not a prepared set; move it away"
            )
        work = folder.with_name(f"{folder.name}.preparing")
        shutil.rmtree(work, ignore_errors=True)  # what a killed conversion has left
        try:
            work.mkdir()
            _convert(folder.name, plan(work / "scratch"), work, num_processes)
            shutil.rmtree(work / "scratch", ignore_errors=True)
            os.rename(work, folder)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"cannot prepare {folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


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
    total = sum(plan.sizes.values())
    _require_room(work, total * int(np.prod(plan.shape)))
    for split, size in plan.sizes.items():
        np.lib.format.open_memmap(work / f"{split}.npy", "w+", np.uint8, (size, *plan.shape))
    labels = {split: np.zeros(size, np.int64) for split, size in plan.sizes.items()}
    tasks: list[Task] = []
    for split, chunks in plan.splits.items():
        starts = accumulate((chunk.count for chunk in chunks), initial=0)
        tasks += [
            (work / f"{split}.npy", start, chunk, plan.shape) for start, chunk in zip(starts, chunks, strict=False)
        ]
    converted = Counter[str]()
    processes = min(num_processes or _usable_processors(), len(tasks))
    results = (_write_chunk(*task) for task in tasks) if processes <= 1 else _run_in_processes(tasks, processes)
    with contextlib.closing(results), progress(f"preparing {name}", total) as advance:
        for path, start, found, counts, count in results:
            labels[path.stem][start : start + len(found)] = found
            converted.update(counts)
            advance(count)
    if plan.classes:
        for split, values in labels.items():
            np.save(work / f"{split}-labels.npy", values)
    arrays = sorted(work.glob("*.npy"))
    for path in arrays:  # on the disk before the name says that it is whole
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    manifest = {
        "format": FORMAT,
        "name": plan.source["name"],
        "splits": {split: [size, *plan.shape] for split, size in plan.sizes.items()},
        "classes": list(plan.classes),
        "converted": dict(sorted(converted.items())),
        "source": dict(plan.source),
        "sha256": {path.name: file_digest(path, "sha256") for path in arrays},
    }
    with atomic_write(work / MANIFEST) as manifest_file:
        manifest_file.write(json.dumps(manifest, indent=2).encode())


Task = tuple[Path, int, Chunk, tuple[int, int, int]]
"""Array file, number of the first image in it, what to read, shape of an image."""

Done = tuple[Path, int, list[int], Counter[str], int]
"""Array file, number of the first image, labels, what was converted, number of images."""


def _run_in_processes(tasks: Iterable[Task], processes: int) -> Generator[Done]:
    """Convert in several processes; they write into the arrays themselves, only counts and labels come back.

    They are forked where that is possible, since starting afresh would import torch in each; they run numpy and Pillow
    only.
    """
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(_write_chunk, *task) for task in tasks]):
                yield future.result()
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


def _write_chunk(path: Path, first: int, chunk: Chunk, shape: tuple[int, int, int]) -> Done:
    """Read a chunk and write its images to their place in the array file.

    Writes to the file, not through a memory map, where a full disk would be a SIGBUS and not an error.
    """
    count, labels, converted = 0, list[int](), Counter[str]()
    with open(path, "r+b") as file:
        file.seek(np.load(path, mmap_mode="r").offset + first * int(np.prod(shape)))
        for block in chunk.blocks():
            images = _with_channels(block.images, shape[0])
            if images.dtype != np.uint8 or images.shape[1:] != shape or count + len(images) > chunk.count:
                raise InputError(f"a block of {images.dtype} {images.shape} does not fit into {chunk.count} of {shape}")
            file.write(np.ascontiguousarray(images).data)
            count += len(images)
            converted.update(block.converted)
            labels.extend(np.asarray(block.labels, np.int64).tolist())
    if count != chunk.count:
        raise InputError(f"{count} images came where {chunk.count} were announced")
    return path, first, labels, converted, count


def _with_channels(images: NDArray[np.uint8], num_channels: int) -> NDArray[np.uint8]:
    """Colour to luminance (ITU-R 601, rounded as Pillow does) or grey to colour, where needed; axis 1 is channels."""
    if images.shape[1] == num_channels:
        return images
    if num_channels == 3:
        return np.repeat(images, 3, axis=1)
    red, green, blue = (images[:, channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[:, None]


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder.parent} has {free / 2**20:,.0f} MiB free, but {needed / 2**20:,.0f} MiB are needed: "
            "make room, or choose another data.prepared_dir"
        )


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
