"""The npz batches of Chrabaszcz's release of ImageNet."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from datamodules.preparing.archives import file_digest
from datamodules.preparing.conversion import Block
from flows.errors import InputError

PUBLISHED_MD5 = {
    "train_data_batch_1.npz": "464fde20de6eb44c28cc1a8c11544bb1",
    "train_data_batch_2.npz": "bdb56e71882c3fd91619d789d5dd7c79",
    "train_data_batch_3.npz": "83ff36d76ea26867491a281ea6e1d03b",
    "train_data_batch_4.npz": "98ff184fe109d5c2a0f6da63843880c7",
    "train_data_batch_5.npz": "62b8803e13c3e6de9498da7aaaae57c8",
    "train_data_batch_6.npz": "e0b06665f890b029f1d8d0a0db26e119",
    "train_data_batch_7.npz": "9731f469aac1622477813c132c5a847a",
    "train_data_batch_8.npz": "60aed934b9d26b7ee83a1a83bdcfbe0f",
    "train_data_batch_9.npz": "b96328e6affd718660c2561a6fe8c14c",
    "train_data_batch_10.npz": "1dc618d544c554220dd118f72975470c",
    "val_data.npz": "a8c04a389f2649841fb7a01720da9dd9",
}
"""Of the 32 x 32 npz files, as several loaders quote them."""

NUM_CLASSES = 1000
BYTES_PER_BLOCK = 8 << 20


@dataclass(frozen=True)
class NpzBatch:
    """One npz file: ``data``, uint8 ``(N, 3 size size)``, channel by channel; ``labels``, 1 to 1000, ``(N,)``."""

    path: Path
    count: int
    image_size: int

    def blocks(self) -> Iterator[Block]:
        size, pixels = self.image_size, 3 * self.image_size**2
        at_once = max(BYTES_PER_BLOCK // pixels, 1)
        self._check_labels()
        with _explained(self.path), zipfile.ZipFile(self.path) as archive, archive.open("data.npy") as file:
            _array_header(file)
            for start in range(0, self.count, at_once):
                num_images = min(at_once, self.count - start)
                block = np.frombuffer(file.read(num_images * pixels), np.uint8)
                yield Block(block.reshape(num_images, 3, size, size), Counter())
            if file.read(1):
                raise ValueError("there is more data than its header says")

    def _check_labels(self) -> None:
        with _explained(self.path), np.load(self.path, allow_pickle=False) as archive:
            labels = archive["labels"]
        if labels.shape != (self.count,) or labels.dtype.kind not in "iu":
            found = f"{labels.dtype} labels of shape {labels.shape}"
            raise InputError(f"{self.path} holds {self.count:,} images, but {found}: get it again")
        if self.count and not (labels.min() >= 1 and labels.max() <= NUM_CLASSES):
            found = f"{labels.min()} to {labels.max()}"
            raise InputError(f"{self.path} has labels from {found} instead of 1 to {NUM_CLASSES}: get it again")


def find_files(source: Path, size: int) -> dict[str, list[Path]]:
    """The batches of each split, in ``source`` or the folders in it; they are named alike at either size.

    Raises:
        InputError: a batch is there twice.
    """
    places: dict[str, Path] = {}
    for path in sorted([*source.glob("*.npz"), *source.glob("*/*.npz")]):
        if path.name in PUBLISHED_MD5 and path.name in places:
            raise InputError(f"{path.name} is there twice, as {places[path.name]} and {path}: remove one of them")
        places[path.name] = path
    train = [places[name] for name in PUBLISHED_MD5 if name.startswith("train") and name in places]
    return {"train": train, "test": [places["val_data.npz"]] if "val_data.npz" in places else []}


def compare_checksums(paths: Sequence[Path]) -> str:
    """What the checksums of 32 x 32 files say."""
    different = [path.name for path in paths if file_digest(path, "md5") != PUBLISHED_MD5[path.name]]
    return f"differ from the published ones: {', '.join(different)}" if different else "as published"


def chunks_of(path: Path, size: int) -> Iterator[NpzBatch]:
    """The images of a file; they are checked against the sizes that it states."""
    with _explained(path), zipfile.ZipFile(path) as archive:
        with archive.open("data.npy") as file:
            shape, dtype = _array_header(file)
            place = file.tell()
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3 * size**2:
            found = f"{dtype} data of shape {shape}"
            raise InputError(f"{path} holds {found} instead of uint8 images of {size} x {size}: give that size's files")
        if archive.getinfo("data.npy").file_size != place + shape[0] * shape[1]:
            raise ValueError("its sizes contradict each other")
    yield NpzBatch(path, shape[0], size)


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an ``.npy`` stream, which is left at its first value; no object is ever built from it."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it has another format of arrays")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype.hasobject:
        raise ValueError("it holds objects or is stored column by column")
    return shape, dtype


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn everything that reading a damaged npz file raises into one line."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} is not a batch of ImageNet: {str(error.args[0])[:80]}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or not an npz file ({error}): get it again from its source") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
