"""Prepared sets on the disk: one memory-mapped uint8 array a split, and a small manifest that says what it is.

A prepared set is a folder::

    cifar10/manifest.json        name, source, and for each split its file, shape and SHA-256
    cifar10/train.npy            uint8 (N, C, H, W), in numpy's own format
    cifar10/test.npy

Whatever has a manifest is whole (:mod:`datamodules.conversion`).
"""

from __future__ import annotations

import json
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


class PreparedImages(ImageDataset):
    """One split of a prepared set, read through a memory map.

    Args:
        path: the ``.npy`` file.
        shape: what it must hold, ``(N, C, H, W)``.

    Raises:
        InputError: the file is missing or holds something else.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            is_whole = images.shape == shape and images.dtype == np.uint8
            is_whole = is_whole and path.stat().st_size == images.offset + images.nbytes
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy(path.parent)}") from error
        except (ValueError, EOFError):
            is_whole = False
        if not is_whole:
            raise InputError(f"{path} is damaged: it has the wrong size or header; {remedy(path.parent)}")
        self._images = np.asarray(images)

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._images[np.asarray(indices, dtype=np.int64)])

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedImages, (self.path, self.shape)  # to another process goes the name, not the content


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


def remedy(folder: Path) -> str:
    """What to do when a prepared set is not what it should be."""
    return f"remove {folder} and prepare it again (prepare.py)"
