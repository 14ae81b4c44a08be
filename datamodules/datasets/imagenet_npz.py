"""The npz batches of Chrabaszcz's release of ImageNet."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from datamodules.preparing.conversion import Chunk
from datamodules.preparing.reading import reading
from flows.errors import InputError

BATCHES = {"train": [f"train_data_batch_{number}.npz" for number in range(1, 11)], "test": ["val_data.npz"]}
"""The files of each split, which are named alike at either size."""

BYTES_PER_BLOCK = 8 << 20


def find_chunks(source: Path, size: int) -> dict[str, list[Chunk]]:
    """The images of each split, from the batches that lie in ``source`` or in the folders in it."""
    places = {path.name: path for path in [*source.glob("*.npz"), *source.glob("*/*.npz")]}
    return {split: [_chunk(places[name], size) for name in names if name in places] for split, names in BATCHES.items()}


def _chunk(path: Path, size: int) -> Chunk:
    with _pixels(path, size) as (_, count):
        return Chunk(count, partial(_read, path, size))


def _read(path: Path, size: int) -> Iterator[NDArray[np.uint8]]:
    pixels = 3 * size**2
    at_once = BYTES_PER_BLOCK // pixels
    with _pixels(path, size) as (file, count):
        for start in range(0, count, at_once):
            num_images = min(at_once, count - start)
            yield np.frombuffer(file.read(num_images * pixels), np.uint8).reshape(num_images, 3, size, size)


@contextmanager
def _pixels(path: Path, size: int) -> Iterator[tuple[IO[bytes], int]]:
    """The stream of a batch's pixels, image by image and channel by channel, and the number of images.

    A batch holds gigabytes once unpacked, which are never in memory together.
    """
    with reading(path), zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if is_fortran or dtype != np.uint8 or shape[1:] != (3 * size**2,):
            found = f"{dtype} data of shape {shape}"
            raise InputError(f"{path} holds {found} instead of uint8 images of {size} x {size}: give that size's files")
        yield file, shape[0]
