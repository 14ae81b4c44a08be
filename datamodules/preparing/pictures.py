"""Picture files of any size as a part of a prepared set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.preparing.conversion import Block
from datamodules.preparing.decoding import decode, read_file
from flows.errors import InputError

Scale = Callable[[Image.Image, int], tuple[NDArray[np.uint8], Counter[str]]]
"""From a picture in mode RGB and a side to uint8 ``(3, side, side)``, and a count of what was done."""

PICTURES_PER_CHUNK = 128


@dataclass(frozen=True)
class ScaledPictures:
    """Some files, each decoded and scaled to ``image_size``, and their labels, if there are any."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    scale: Scale
    image_size: int

    @property
    def count(self) -> int:
        return len(self.paths)

    def blocks(self) -> Iterator[Block]:
        images, converted = [], Counter[str]()
        for path in self.paths:
            picture, counts = decode(read_file(path), str(path))
            image, more = self.scale(picture, self.image_size)
            images.append(image)
            converted.update(counts + more)
        yield Block(np.stack(images), converted, self.labels)


def chunks_of(paths: Sequence[Path], scale: Scale, image_size: int, labels: Sequence[int] = ()) -> list[ScaledPictures]:
    """The files in order, some at a time."""
    parts = [slice(start, start + PICTURES_PER_CHUNK) for start in range(0, len(paths), PICTURES_PER_CHUNK)]
    return [ScaledPictures(tuple(paths[part]), tuple(labels[part]), scale, image_size) for part in parts]


def list_files(folder: Path, suffixes: Sequence[str]) -> tuple[list[Path], int]:
    """The files below ``folder`` with one of these endings (in any case), sorted, and how many others there are.

    Hidden files and folders are passed over; links to folders are not followed.

    Raises:
        InputError: a folder cannot be read.
    """
    found, others = [], 0
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(tuple(suffixes)):
                found.append(Path(place, name))
            else:
                others += 1
    return sorted(found), others


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from error
