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
from datamodules.preparing.conversion import Block, Chunk
from datamodules.preparing.decoding import decode_exact, read_file
from flows.errors import InputError

IMAGES_PER_CHUNK = 2048


@dataclass(frozen=True)
class TarPictures:
    """PNG files inside an uncompressed tar: names (bytes), offsets and sizes in bytes, ``(N,)`` each."""

    archive: Path
    names: NDArray
    offsets: NDArray
    sizes: NDArray
    image_size: int

    @property
    def count(self) -> int:
        return len(self.names)

    def blocks(self) -> Iterator[Block]:
        yield _decode_all(self._contents(), self.count, self.image_size)

    def _contents(self) -> Iterator[tuple[bytes, str]]:
        try:
            with open(self.archive, "rb") as file:
                for name, offset, size in zip(self.names, self.offsets, self.sizes, strict=True):
                    file.seek(offset)
                    yield file.read(size), f"{name.decode(errors='replace')} in {self.archive}"
        except OSError as error:
            raise InputError(f"cannot read {self.archive}: {error.strerror or error}") from error


@dataclass(frozen=True)
class FolderPictures:
    """PNG files in one folder: their names (bytes), ``(N,)``."""

    folder: Path
    names: NDArray
    image_size: int

    @property
    def count(self) -> int:
        return len(self.names)

    def blocks(self) -> Iterator[Block]:
        paths = (f"{self.folder}/{name.decode()}" for name in self.names)
        yield _decode_all(((read_file(path), path) for path in paths), self.count, self.image_size)


def _decode_all(contents: Iterator[tuple[bytes, str]], count: int, size: int) -> Block:
    images, converted = np.empty((count, size, size, 3), np.uint8), Counter[str]()
    for image, (content, where) in zip(images, contents, strict=True):
        image[:], counts = decode_exact(content, where, size)
        if counts:
            converted.update(counts)
    return Block(images.transpose(0, 3, 1, 2), converted)


def find_files(source: Path, size: int) -> dict[str, list[Path]]:
    """The archive, or else the folder, of each split, where there is one."""
    found = {}
    for split, name in (("train", "train"), ("test", "valid")):
        folder = source / f"{name}_{size}x{size}"
        archive = folder.with_name(f"{folder.name}.tar")
        found[split] = [archive] if archive.is_file() else [folder] if folder.is_dir() else []
    return found


def chunks_of(path: Path, size: int) -> Iterator[Chunk]:
    """The PNG files of a tar or a folder, sorted by name, some thousands at a time."""
    if path.is_dir():
        names = np.array([entry.encode() for entry in _listing(path)], dtype=bytes)
        names.sort()
        for start in range(0, len(names), IMAGES_PER_CHUNK):
            yield FolderPictures(path, names[start : start + IMAGES_PER_CHUNK], size)
        return
    names, offsets, sizes = index_pictures(path, ".png")
    for start in range(0, len(names), IMAGES_PER_CHUNK):
        part = slice(start, start + IMAGES_PER_CHUNK)
        yield TarPictures(path, names[part], offsets[part], sizes[part], size)


def _listing(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries)
            yield from (name for name in names if name.endswith(".png") and not name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
