"""Picture files as a part of a prepared set: where they lie, and how they are read."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.preparing.conversion import Chunk
from datamodules.preparing.decoding import decode
from datamodules.preparing.reading import reading
from flows.errors import InputError

Scale = Callable[[Image.Image, int], NDArray[np.uint8]]
"""From a picture in mode RGB and a side to uint8 ``(3, side, side)``."""

PICTURES_PER_CHUNK = 128


class Place(NamedTuple):
    """Where a picture lies: a file of its own, or some bytes of an archive, in which it has a name."""

    path: Path | str
    name: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.name} in {self.path}" if self.name else str(self.path)

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def picture_chunks(places: Sequence[Place], scale: Scale, image_size: int) -> list[Chunk]:
    """The pictures in order, some at a time, each decoded and scaled to ``image_size``."""
    parts = [tuple(places[start : start + PICTURES_PER_CHUNK]) for start in range(0, len(places), PICTURES_PER_CHUNK)]
    return [Chunk(len(part), partial(_read, part, scale, image_size)) for part in parts]


def _read(places: Sequence[Place], scale: Scale, image_size: int) -> Iterator[NDArray[np.uint8]]:
    images = []
    for place in places:
        with reading(place):
            images.append(scale(decode(place.read()), image_size))
    yield np.stack(images)


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files below ``folder`` with one of these endings (in any case), sorted.

    Hidden files and folders are passed over; links to folders are not followed.

    Raises:
        InputError: a folder cannot be read.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = (name for name in names if name.lower().endswith(tuple(suffixes)) and not name.startswith("."))
        found += [Path(place, name) for name in wanted]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from error


def list_archive(archive: Path, suffix: str) -> list[Place]:
    """The pictures of an uncompressed tar, sorted by name; links and hidden files are passed over.

    Raises:
        InputError: the archive is damaged, cut short, or compressed, so that it cannot be read at any place.
    """
    places = []
    with reading(archive), tarfile.open(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header: a gigabyte for a million
            name = PurePosixPath(member.name).name
            if member.isfile() and name.endswith(suffix) and not name.startswith("."):
                places.append(Place(archive, name, member.offset_data, member.size))
    return sorted(places, key=lambda place: place.name)
