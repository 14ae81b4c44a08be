"""Prepared sets on the disk: one memory-mapped uint8 array a split, and a small manifest that says what it is.

A prepared set is a folder::

    cifar10/manifest.json        name, source, and for each split its file, shape and SHA-256
    cifar10/train.npy            uint8 (N, C, H, W), in numpy's own format
    cifar10/test.npy

Whatever has a manifest is whole (:mod:`datamodules.conversion`).
"""

from __future__ import annotations

import io
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.archives import file_digest
from datamodules.sets import ImageDataset
from flows.errors import InputError

FORMAT = 1
"""Version of the folder's layout."""

MANIFEST = "manifest.json"

RELEASE_AFTER = 64 << 20
"""Bytes of a memory map that may become resident before its pages are handed back to the system's cache."""

FAULT_BYTES = 64 << 10
"""What reading a single byte of a memory map makes resident (Linux maps so much around every fault)."""


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
        header, mend = npy_header(self.shape), remedy(self.path.parent)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                whole = file.read(len(header)) == header and size == len(header) + self._bytes
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if whole else None
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}; {mend}") from error
        if self._map is None:
            raise InputError(f"{self.path} is damaged: it has the wrong size or header; {mend}")
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
        raise InputError(f"{folder / MANIFEST} is damaged; {remedy(folder)}") from error
    if not known:
        raise InputError(f"{folder / MANIFEST} has a layout that this version does not read; {remedy(folder)}")
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
            raise InputError(f"{images.path} has changed since it was prepared (SHA-256 differs); {remedy(folder)}")
    return {name: split["shape"][0] for name, split in manifest["splits"].items()}


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the values of a split, which are uint8 in C order."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    return file.getvalue()


def remedy(folder: Path) -> str:
    """What to do when a prepared set is not what it should be."""
    return f"remove {folder} and prepare it again (prepare.py)"
