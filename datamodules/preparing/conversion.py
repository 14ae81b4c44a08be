"""How a data set is converted, once, to a prepared set (:mod:`datamodules.preparing.storage`).

The set is written as ``cifar10.preparing/`` and renamed when complete, so that a folder with the final name is whole. A
lock lets one process convert while the others wait. A conversion that fails removes its folder; one that was killed is
started over. Sources are only read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pooch
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.preparing.decoding import luminance
from datamodules.preparing.reading import UnreadableError
from datamodules.preparing.storage import FORMAT, MANIFEST
from flows.console import progress
from flows.errors import InputError, StorageError
from flows.files import atomic_write


@dataclass(frozen=True)
class Chunk:
    """Some consecutive images of a split: a process's unit of work.

    Args:
        count: number of images.
        read: yields them all, in blocks of uint8 ``(n, C, H, W)`` with 1 or 3 channels. A chunk may be sent to another
            process to be read there.
    """

    count: int
    read: Callable[[], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Plan:
    """What a prepared set will hold.

    Args:
        splits: the chunks of each split, in order.
        source: plain data about where the images come from, for the manifest; its ``name`` is the set's in reports.
        labels: the class of each image of a split, int64 ``(N,)``, where there are classes.
    """

    splits: Mapping[str, Sequence[Chunk]]
    source: Mapping[str, Any]
    labels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def prepare(
    folder: Path, plan: Callable[[], Plan], image_shape: tuple[int, int, int], num_processes: int | None = None
) -> None:
    """Convert a set once; of processes that call this together, one converts and the others wait for it.

    Args:
        folder: where the prepared set will be.
        plan: looks at the source and says how it is converted.
        image_shape: of the prepared images, ``(C, H, W)``; colour becomes luminance where it has one channel.
        num_processes: that convert, at least 1; ``None`` uses every processor that this one may run on.

    Raises:
        InputError: the source cannot be used.
        UnreadableError: some of its files cannot be read; all of them are named.
        StorageError: the disk is full or refuses; nothing is left behind.
    """
    work = folder.with_name(f"{folder.name}.preparing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _turn(folder):
            if (folder / MANIFEST).exists():
                return
            shutil.rmtree(work, ignore_errors=True)  # what a killed conversion has left
            try:
                work.mkdir()
                _convert(folder.name, plan(), image_shape, work, num_processes)
                os.rename(work, folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot prepare {folder}: {reason}; make room, or choose another data.prepared_dir"
        ) from error


def _turn(folder: Path) -> AbstractContextManager:
    """The lock of a prepared set; the system lets go of it when the holder ends, however it ends."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the process that prepares {folder}", file=sys.stderr, flush=True)
        return lock.acquire()


def _convert(name: str, plan: Plan, image_shape: tuple[int, int, int], work: Path, num_processes: int | None) -> None:
    """Fill the arrays and write the manifest into the folder ``work``."""
    sizes = {split: sum(chunk.count for chunk in chunks) for split, chunks in plan.splits.items()}
    paths = {split: work / f"{split}.npy" for split in sizes}
    tasks: list[_Task] = []
    for split, chunks in plan.splits.items():
        np.lib.format.open_memmap(paths[split], "w+", np.uint8, (sizes[split], *image_shape))
        starts = accumulate((chunk.count for chunk in chunks), initial=0)
        tasks += [_Task(paths[split], start, chunk) for start, chunk in zip(starts, chunks, strict=False)]
    processes = min(num_processes or _usable_processors(), len(tasks))
    loader = DataLoader(
        cast(Any, tasks),
        batch_size=None,
        collate_fn=cast(Any, _write),
        num_workers=processes if processes > 1 else 0,
        generator=torch.Generator(),  # not the global one, which a training goes on to use
    )
    unreadable: dict[str, str] = {}
    with progress(f"preparing {name}", sum(sizes.values())) as advance:
        for done in loader:
            if isinstance(done, UnreadableError):
                unreadable |= done.reasons
            elif isinstance(done, Exception):
                raise done
            else:
                advance(done)
    if unreadable:
        raise UnreadableError(unreadable)
    for split, labels in plan.labels.items():
        np.save(work / f"{split}-labels.npy", labels)
    arrays = sorted(work.glob("*.npy"))
    for path in arrays:  # on the disk before the name says that it is whole
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    manifest = {
        "format": FORMAT,
        "name": plan.source["name"],
        "splits": {split: [size, *image_shape] for split, size in sizes.items()},
        "source": dict(plan.source),
        "sha256": {path.name: pooch.file_hash(path) for path in arrays},
    }
    with atomic_write(work / MANIFEST) as manifest_file:
        manifest_file.write(json.dumps(manifest, indent=2).encode())


class _Task(NamedTuple):
    """A chunk, the array file that it goes to, and the number of its first image there."""

    path: Path
    first: int
    chunk: Chunk


def _write(task: _Task) -> int | Exception:
    """Write a chunk to its place in the array file; the number of its images, or what has gone wrong.

    A process that raised an error would add its traceback to the message. Writes to the file, not through a memory map,
    where a full disk would be a SIGBUS and not an error.
    """
    try:
        array = np.load(task.path, mmap_mode="r")
        with open(task.path, "r+b") as file:
            file.seek(array.offset + task.first * array[0].nbytes)
            for images in task.chunk.read():
                if array.shape[1] == 1 and images.shape[1] == 3:
                    images = luminance(images)
                fitting = np.broadcast_to(images, (len(images), *array.shape[1:]))  # grey to colour
                file.write(np.ascontiguousarray(fitting).data)
    except (InputError, OSError) as error:
        return error
    return task.chunk.count


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
