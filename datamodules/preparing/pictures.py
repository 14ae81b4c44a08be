"""Picture files as a part of a prepared set: where they lie, and how they are read."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.preparing.conversion import Chunk
from datamodules.preparing.decoding import FORMATS_IN_WORDS, PictureReader
from datamodules.preparing.reading import UnreadableError, reading
from flows.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif")

HIDDEN = (".", "__MACOSX", "@eaDir")
"""How the names begin of what systems leave beside pictures: previews and half-pictures with endings of pictures."""

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


def picture_chunks(places: Sequence[Place], reader: PictureReader) -> list[Chunk]:
    """The pictures in order, some at a time, each read by ``reader``."""
    parts = [tuple(places[start : start + PICTURES_PER_CHUNK]) for start in range(0, len(places), PICTURES_PER_CHUNK)]
    return [Chunk(len(part), partial(_read, part, reader)) for part in parts]


def _read(places: Sequence[Place], reader: PictureReader) -> Iterator[NDArray[np.uint8]]:
    images: list[NDArray[np.uint8]] = []
    reasons: dict[str, str] = {}
    for place in places:
        try:
            with reading(place):
                images.append(reader(place.read())[0])
        except UnreadableError as error:
            reasons.update(error.reasons)
    if reasons:
        raise UnreadableError(reasons)
    yield np.stack(images)


def list_pictures(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The picture files below ``folder`` by their endings, sorted; and what else is there, with the reason.

    What is hidden is left out, and folders that are links are not followed.

    Raises:
        InputError: a folder cannot be read.
    """
    pictures, left_out = [], {}
    for place, folders, names in os.walk(folder, onerror=_refuse):
        for path in sorted(Path(place, name) for name in (*folders, *names)):
            if path.name.startswith(HIDDEN):
                left_out[str(path)] = "hidden"
            elif path.name in folders:
                if path.is_symlink():
                    left_out[str(path)] = "a link to a folder"
            elif not path.name.lower().endswith(SUFFIXES):
                left_out[str(path)] = f"not {FORMATS_IN_WORDS} by its name"
            elif not path.is_file():  # to read from a pipe would be to wait
                left_out[str(path)] = "not a file"
            else:
                pictures.append(path)
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
    return sorted(pictures), left_out


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
