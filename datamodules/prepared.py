"""Data sets converted once: one memory-mapped uint8 array a split, and a small manifest that says what it is.

A prepared set is a folder::

    cifar10/manifest.json        name, source, and for each split its file, shape and SHA-256
    cifar10/train.npy            uint8 (N, C, H, W), in numpy's own format
    cifar10/test.npy

It comes into being as ``cifar10.preparing/`` and is renamed when complete, so that whatever carries the final name is
whole. What a killed conversion had finished is listed in a journal there and not done again. A lock lets one process
convert while the others wait. A conversion that fails (a broken source, a full disk) removes its folder; sources are
only ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import shutil
import sys
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from datamodules.archives import file_digest
from datamodules.base import ImageDataModule
from datamodules.sets import ImageDataset
from flows.cli.report import progress
from flows.errors import InputError, StorageError
from flows.files import atomic_write

FORMAT = 1
"""Version of the folder's layout."""

MANIFEST, JOURNAL, WORK = "manifest.json", "journal.json", ".preparing"

SECONDS_BETWEEN_JOURNALS = 1.0
"""At most this much work is lost by a kill."""

RELEASE_AFTER = 64 << 20
"""Bytes of a memory map that may become resident before its pages are handed back to the system's cache."""

FAULT_BYTES = 64 << 10
"""What reading a single byte of a memory map makes resident (Linux maps so much around every fault)."""


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


class PreparedImages(ImageDataset):
    """One split of a prepared set, read through a memory map.

    Resident memory stays below about 64 MiB however large the file is: the pages go back to the system's cache, from
    which they come again without touching the disk.

    Args:
        path: the ``.npy`` file.
        shape: what it must hold, ``(N, C, H, W)``.

    Raises:
        InputError: the file is missing or holds something else.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self._map: mmap.mmap | None = None
        self._open()

    def _open(self) -> None:
        header, remedy = _npy_header(self.shape), _remedy(self.path.parent)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                whole = file.read(len(header)) == header and size == len(header) + self._bytes
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if whole else None
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}; {remedy}") from error
        if self._map is None:
            raise InputError(f"{self.path} is damaged: it has the wrong size or header; {remedy}")
        self._array = np.frombuffer(self._map, np.uint8, self._bytes, len(header)).reshape(self.shape)
        self._read = 0

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, indices: Sequence[int]) -> Tensor:
        images = torch.from_numpy(self._array[np.asarray(indices, dtype=np.int64)])
        self._read += max(images.numel(), len(images) * FAULT_BYTES)
        if self._read > RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):
            assert self._map is not None
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return images

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class PreparedDataModule(ImageDataModule):
    """A data set that is converted on first use into ``prepared_dir`` and read from there ever after.

    A subclass says what it is called (:attr:`folder_name`: two sets that differ must not share one), how it is
    converted (:meth:`plan`), and which images make up the splits (:meth:`assign`). The source is not needed again once
    the set is prepared.

    Args:
        prepared_dir: where prepared sets are kept; each has a folder there.
        num_converters: processes that convert; ``None`` uses every processor that this one may run on.
        **options: see :class:`datamodules.base.ImageDataModule`.
    """

    def __init__(self, *, prepared_dir: str, num_converters: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if self.num_channels not in (1, 3):
            raise InputError(f"data.num_channels must be 1 (luminance) or 3 (colour), not {self.num_channels}")
        if num_converters is not None and num_converters < 1:
            raise InputError(f"data.num_converters must be at least 1, not {num_converters}")
        self.prepared_dir = Path(prepared_dir)
        self.num_converters = num_converters

    @property
    @abstractmethod
    def folder_name(self) -> str:
        """Name of the folder, derived from every argument that changes what is in it."""

    @abstractmethod
    def plan(self, scratch: Path) -> Plan:
        """Look at the source and say how it is converted; ``scratch`` is a folder for what must be unpacked.

        Raises:
            InputError: the source is missing or not what it should be; says what to put where.
        """

    @abstractmethod
    def assign(self, splits: dict[str, PreparedImages]) -> None:
        """Set ``train``, ``val`` and ``test`` from what was prepared."""

    @property
    def folder(self) -> Path:
        """Where the prepared set is, or will be."""
        return self.prepared_dir / self.folder_name

    @property
    def set_name(self) -> str:
        return str(self.manifest["name"])

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known about the prepared set."""
        return read_manifest(self.folder)

    def prepare_data(self) -> None:
        if not (self.folder / MANIFEST).exists():
            prepare(self)

    def setup(self, stage: str | None = None) -> None:
        splits = open_splits(self.folder)
        for path, shape in ((images.path, images.shape) for images in splits.values()):
            if shape[1:] != self.image_shape:
                raise InputError(f"{path} holds images of {shape[1:]}, not {self.image_shape}; {_remedy(self.folder)}")
        self.assign(splits)


def prepare(data: PreparedDataModule) -> None:
    """Convert a set, unless another process has done so meanwhile; wait for one that is at it.

    Raises:
        InputError: the source cannot be used.
        StorageError: the disk is full or refuses; nothing is left behind.
    """
    folder = data.folder
    with _locked(folder):
        if (folder / MANIFEST).exists():
            return
        if folder.exists():
            raise InputError(f"{folder} is in the way: it holds no {MANIFEST}, so it is no prepared set; move it away")
        work = folder.with_name(folder.name + WORK)
        try:
            work.mkdir(exist_ok=True)
            plan = data.plan(work / "scratch")
            _convert(data, plan, work)
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


def _convert(data: PreparedDataModule, plan: Plan, work: Path) -> None:
    """Fill the arrays and write the manifest into the folder ``work``."""
    for split, size in plan.sizes.items():
        if size == 0:
            raise InputError(f"the {split} split of {data.folder_name} would be empty")
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
    remaining = {name: task for name, task in tasks.items() if name not in done}
    processes = min(data.num_converters or _usable_processors(), len(remaining))
    run = _run_here(remaining) if processes <= 1 else _run_in_processes(remaining, processes)
    with contextlib.closing(run), progress(f"preparing {data.folder_name}", sum(plan.sizes.values())) as advance:
        advance(already)
        for name, converted in run:
            journal.add(name, converted)
            advance(tasks[name][2].count)
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


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    return file.getvalue()


def _header_length(path: str) -> int:
    with open(path, "rb") as file:
        return 10 + int.from_bytes(file.read(10)[8:10], "little")


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    with open(path, "wb") as file:
        file.write(_npy_header(shape))
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


def _remedy(folder: Path) -> str:
    return f"remove {folder} and prepare it again (prepare.py)"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        InputError: there is none, it is damaged, or another version of this project wrote it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        known = manifest["format"] == FORMAT
        for split in manifest["splits"].values():
            known = known and Path(split["file"]).name == split["file"]  # never leads out of the folder
            known = known and split["dtype"] == "uint8" and len(split["sha256"]) == 64
            known = known and len(split["shape"]) == 4 and all(type(size) is int for size in split["shape"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not prepared: run prepare.py with the same data=... first") from error
    except OSError as error:
        raise InputError(f"cannot read {folder / MANIFEST}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged; {_remedy(folder)}") from error
    if not known:
        raise InputError(f"{folder / MANIFEST} has a layout that this version does not read; {_remedy(folder)}")
    return manifest


def open_splits(folder: Path) -> dict[str, PreparedImages]:
    """All splits of a prepared set. Raises ``InputError`` if it is missing or damaged."""
    splits = read_manifest(folder)["splits"]
    return {name: PreparedImages(folder / split["file"], tuple(split["shape"])) for name, split in splits.items()}


def verify(folder: Path) -> dict[str, int]:
    """Read a prepared set from end to end and compare it with its checksums.

    Returns:
        The number of images in each split.

    Raises:
        InputError: a file is missing or not what was once written.
    """
    manifest = read_manifest(folder)
    for name, images in open_splits(folder).items():
        if file_digest(images.path, "sha256") != manifest["splits"][name]["sha256"]:
            raise InputError(f"{images.path} has changed since it was prepared (SHA-256 differs); {_remedy(folder)}")
    return {name: split["shape"][0] for name, split in manifest["splits"].items()}
