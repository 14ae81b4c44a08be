"""The PNG files of van den Oord's release of ImageNet, in a tar or a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.preparing.archives import index_pictures
from datamodules.preparing.conversion import Block
from datamodules.preparing.decoding import decode, read_file
from flows.errors import InputError

IMAGES_PER_CHUNK = 2048


@dataclass(frozen=True)
class PngFiles:
    """PNG files of a folder or of an uncompressed tar: names (bytes); in a tar, offsets and sizes; ``(N,)`` each."""

    place: Path
    image_size: int
    names: NDArray
    offsets: NDArray | None = None
    sizes: NDArray | None = None

    @property
    def count(self) -> int:
        return len(self.names)

    def blocks(self) -> Iterator[Block]:
        size = self.image_size
        images, converted = np.empty((self.count, size, size, 3), np.uint8), Counter[str]()
        for image, (content, where) in zip(images, self._contents(), strict=True):
            picture, counts = decode(content, where, ("PNG",))
            if picture.size != (size, size):
                raise InputError(
                    f"{where} has {picture.width} x {picture.height} pixels instead of {size} x {size}: it belongs to "
                    "another data set"
                )
            image[:] = np.asarray(picture)
            converted.update(counts)
        yield Block(images.transpose(0, 3, 1, 2), converted)

    def _contents(self) -> Iterator[tuple[bytes, str]]:
        if self.offsets is None or self.sizes is None:
            for name in self.names:
                path = f"{self.place}/{name.decode()}"
                yield read_file(path), path
            return
        try:
            with open(self.place, "rb") as file:
                for name, offset, size in zip(self.names, self.offsets, self.sizes, strict=True):
                    file.seek(offset)
                    yield file.read(size), f"{name.decode(errors='replace')} in {self.place}"
        except OSError as error:
            raise InputError(f"cannot read {self.place}: {error.strerror or error}") from error


def find_files(source: Path, size: int) -> dict[str, list[Path]]:
    """The archive, or else the folder, of each split, where there is one."""
    found = {}
    for split, name in (("train", "train"), ("test", "valid")):
        folder = source / f"{name}_{size}x{size}"
        archive = folder.with_name(f"{folder.name}.tar")
        found[split] = [archive] if archive.is_file() else [folder] if folder.is_dir() else []
    return found


def chunks_of(path: Path, size: int) -> Iterator[PngFiles]:
    """The PNG files of a tar or a folder, sorted by name, some thousands at a time."""
    arrays = (_listing(path),) if path.is_dir() else index_pictures(path, ".png")
    for start in range(0, len(arrays[0]), IMAGES_PER_CHUNK):
        yield PngFiles(path, size, *(array[start : start + IMAGES_PER_CHUNK] for array in arrays))


def _listing(folder: Path) -> NDArray:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".png") and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
    return np.sort(np.array([name.encode() for name in names], dtype=bytes))
