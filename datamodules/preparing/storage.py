"""Prepared sets on the disk: one memory-mapped uint8 array per split, and a small manifest that says what it is.

A prepared set is a folder::

    cifar10/manifest.json        name, source, the shape of each split, and each file's SHA-256
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
import pooch
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.loading.datasets import ImageDataset
from flows.errors import InputError, first_line

FORMAT = 2
"""Version of the folder's layout."""

MANIFEST = "manifest.json"


class PreparedImages(ImageDataset):
    """One split of a prepared set, read through a memory map.

    Args:
        path: the ``.npy`` file of images, ``(N, C, H, W)``; labels, if there are any, lie beside it.

    Raises:
        InputError: a file is missing, cut short, or not an array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images = _open_array(path)
        labels = path.with_name(f"{path.stem}-labels.npy")
        if labels.exists():
            self.labels = torch.from_numpy(np.array(_open_array(labels)))

    def __len__(self) -> int:
        return len(self._images)

    def gather(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.asarray(self._images[np.asarray(indices, dtype=np.int64)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes the name, not the content.
        return PreparedImages, (self.path,)


def _open_array(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path} ({first_line(error)}); {_remedy(path.parent)}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set.

    Raises:
        InputError: there is none, it is damaged, or another version of this project wrote it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not prepared: run prepare.py with the same data=... first") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / MANIFEST} ({first_line(error)}); {_remedy(folder)}") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST} has a layout that this version does not read; {_remedy(folder)}")
    return manifest


def open_splits(folder: Path) -> dict[str, PreparedImages]:
    """All splits of a prepared set. Raises ``InputError`` if it is missing or damaged."""
    return {split: PreparedImages(folder / f"{split}.npy") for split in read_manifest(folder)["splits"]}


def verify(folder: Path) -> dict[str, int]:
    """Read a prepared set from end to end and compare it with its checksums.

    Returns:
        The number of images in each split.

    Raises:
        InputError: a file is missing or not what was once written.
    """
    splits = open_splits(folder)
    for name, expected in read_manifest(folder)["sha256"].items():
        if pooch.file_hash(folder / name) != expected:
            raise InputError(f"{folder / name} has changed since it was prepared (SHA-256 differs); {_remedy(folder)}")
    return {split: len(images) for split, images in splits.items()}


def _remedy(folder: Path) -> str:
    """What to do when a prepared set is not what it should be."""
    return f"remove {folder} and prepare it again (prepare.py)"
