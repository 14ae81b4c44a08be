"""Prepared sets on the disk: one memory-mapped uint8 array per split, and a small manifest that says what it is.

A prepared set is a folder::

    cifar10/manifest.json        name, source, classes, the shape of each split, and each file's SHA-256
    cifar10/train.npy            uint8 (N, C, H, W), in numpy's own format
    cifar10/train-labels.npy     int64 (N,), where there are classes
    cifar10/test.npy, ...

Whatever has a manifest is whole (:mod:`datamodules.preparing.conversion`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.loading.datasets import ImageDataset
from datamodules.preparing.archives import file_digest
from flows.errors import InputError

FORMAT = 2
"""Version of the folder's layout."""

MANIFEST = "manifest.json"

SPLITS = ("train", "val", "test")


class PreparedImages(ImageDataset):
    """One split of a prepared set, read through a memory map.

    Args:
        path: the ``.npy`` file of images.
        shape: what it must hold, ``(N, C, H, W)``.
        labels: the ``.npy`` file of labels, if there are any.

    Raises:
        InputError: a file is missing or holds something else.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], labels: Path | None = None) -> None:
        self.path, self.shape, self.labels_path = path, shape, labels
        self._images = _open_array(path, shape, np.uint8)
        if labels is not None:
            self.labels = torch.from_numpy(_open_array(labels, shape[:1], np.int64).copy())

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._images[np.asarray(indices, dtype=np.int64)])

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process go the names, not the contents.
        return PreparedImages, (self.path, self.shape, self.labels_path)


def _open_array(path: Path, shape: tuple[int, ...], dtype: type) -> NDArray:
    """A memory map of an array of exactly this shape and type."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        is_whole = array.shape == shape and array.dtype == dtype
        is_whole = is_whole and path.stat().st_size == array.offset + array.nbytes
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy(path.parent)}") from error
    except (ValueError, EOFError):
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is damaged: it has the wrong size or header; {remedy(path.parent)}")
    return np.asarray(array)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        InputError: there is none, it is damaged, or another version of this project wrote it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        known = manifest["format"] == FORMAT and set(manifest["splits"]) <= set(SPLITS)
        for shape in manifest["splits"].values():
            known = known and len(shape) == 4 and all(type(size) is int for size in shape)
        known = known and set(manifest["sha256"]) == set(_files(manifest))
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
    manifest = read_manifest(folder)
    return {
        split: PreparedImages(
            folder / f"{split}.npy", tuple(shape), folder / f"{split}-labels.npy" if manifest["classes"] else None
        )
        for split, shape in manifest["splits"].items()
    }


def _files(manifest: dict[str, Any]) -> list[str]:
    """The names of a set's arrays: they follow from the splits, so that a manifest cannot lead elsewhere."""
    endings = (".npy", "-labels.npy") if manifest["classes"] else (".npy",)
    return [split + ending for split in manifest["splits"] for ending in endings]


def verify(folder: Path) -> dict[str, int]:
    """Read a prepared set from end to end and compare it with its checksums.

    Returns:
        The number of images in each split.

    Raises:
        InputError: a file is missing or not what was once written.
    """
    manifest = read_manifest(folder)
    splits = open_splits(folder)
    for name, expected in manifest["sha256"].items():
        if file_digest(folder / name, "sha256") != expected:
            raise InputError(f"{folder / name} has changed since it was prepared (SHA-256 differs); {remedy(folder)}")
    return {split: len(images) for split, images in splits.items()}


def remedy(folder: Path) -> str:
    """What to do when a prepared set is not what it should be."""
    return f"remove {folder} and prepare it again (prepare.py)"
