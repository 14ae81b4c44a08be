"""CIFAR10: downloaded, or read from an archive or folder that the user has."""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.prepared import BenchmarkDataModule
from datamodules.preparing.conversion import Chunk, Plan
from datamodules.preparing.reading import reading
from flows.errors import InputError, StorageError, first_line

MIRROR = "https://www.cs.toronto.edu/~kriz/"

ARCHIVE = "cifar-10-binary.tar.gz"

ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""As published beside the archive."""

PICKLES_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Of the Python release's files, as torchvision publishes them."""

PLACES = ("", "cifar-10-batches-bin", "cifar-10-batches-py", ARCHIVE, "cifar-10-python.tar.gz")
"""Where the files may lie in a folder: in itself, in those that the archives unpack to, or in an archive."""

IMAGES_PER_FILE = 10_000

IMAGE_BYTES = 3 * 32 * 32


@dataclass(kw_only=True, eq=False)
class CIFAR10(BenchmarkDataModule):
    """The CIFAR10 images: 50,000 for training and 10,000 for testing, uint8 ``(3, 32, 32)``.

    Splits:

    * ``holdout``: 45,000 training, 5,000 validation, 10,000 test images. Every tenth image of the training files is for
      validation; they are in random order there.
    * ``paper``: 50,000 training and 10,000 test images, and validation on the test images. Every report says so.

    The labels, 0 to 9, are the classes of the release.

    Args:
        source: an archive (``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``), or a folder that holds one or its
            unpacked files; ``None`` downloads the binary release. Files of the Python release are compared with their
            published checksums, since reading them could run code.
        download_dir: where the downloaded archive is kept.

    Raises:
        InputError: no archive or folder there; a file that is damaged, of the wrong size or with a wrong checksum; a
            download that fails.
        StorageError: the download or the converted images cannot be stored.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    source: str | None = None
    download_dir: str = "data/downloads"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size != 32:
            raise InputError(f"CIFAR10's images have 32 x 32 pixels: data.image_size cannot be {self.image_size}")

    @property
    def folder_name(self) -> str:
        return f"cifar10{'' if self.num_channels == 3 else '-grey'}"

    def plan(self) -> Plan:
        source = Path(self.source) if self.source is not None else self._download()
        files = [_read(*file) for file in _find_files(source)]
        *train, test = [Chunk(IMAGES_PER_FILE, partial(iter, (images,))) for images, _ in files]
        *train_labels, test_labels = [labels for _, labels in files]
        return Plan(
            {"train": train, "test": [test]},
            {"name": self.folder_name, "source": str(source.resolve())},
            labels={"train": np.concatenate(train_labels), "test": test_labels},
        )

    def _download(self) -> Path:
        """The binary release's archive."""
        import pooch
        import requests

        pooch.get_logger().setLevel(logging.WARNING)
        downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
        try:
            path = pooch.retrieve(
                MIRROR + ARCHIVE, f"md5:{ARCHIVE_MD5}", ARCHIVE, self.download_dir, downloader=downloader
            )
        except (requests.exceptions.RequestException, ValueError) as error:  # pooch's ValueError: a wrong checksum
            raise InputError(
                f"cannot download {MIRROR}{ARCHIVE} ({first_line(error)}): get it in another way and give its path as "
                "data.source"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot store {ARCHIVE} in {self.download_dir}: {error.strerror or error}") from error
        return Path(path)


def _find_files(source: Path) -> list[tuple[str, bytes]]:
    """Names and contents of a release's files: five for training, and the one to test.

    They are in memory together, 180 MB: a gzipped archive is read from one end to the other.
    """
    for place in (source / below for below in PLACES):
        with reading(place):
            contents = _contents(place)
        for ending in (".bin", ""):
            names = [*(f"data_batch_{number}{ending}" for number in range(1, 6)), f"test_batch{ending}"]
            if contents.keys() >= set(names):
                return [(name, contents[name]) for name in names]
    raise InputError(
        f"there is no whole CIFAR10 at {source}: give data.source a folder with cifar-10-binary.tar.gz, "
        "cifar-10-python.tar.gz or all of their unpacked files, or an archive, or leave it out to download"
    )


def _contents(place: Path) -> dict[str, bytes]:
    """The contents of the files in a folder or archive by name, but for those of other things."""
    if place.is_dir():
        return {path.name: path.read_bytes() for path in place.glob("*_batch*") if path.is_file()}
    if not place.is_file():
        return {}
    with tarfile.open(place) as tar:
        return {
            Path(member.name).name: tar.extractfile(member).read()  # type: ignore[union-attr]  # a file, not a link
            for member in tar
            if member.isfile() and "_batch" in member.name
        }


def _read(name: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images and labels of a file.

    In the binary release it holds records of a label's byte and 3072 bytes, channel by channel, row by row. In the
    Python release it holds a pickled dict with ``data``, uint8 ``(N, 3072)``, and ``labels``, a list.
    """
    if name.endswith(".bin"):
        with reading(name):
            records = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_FILE, 1 + IMAGE_BYTES)
        labels, images = records[:, 0], records[:, 1:]
    else:
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != PICKLES_MD5[name]:
            raise InputError(f"{name} differs from the published file (MD5): get it again")
        batch = pickle.loads(content, encoding="bytes")  # runs no code: the content is known
        labels, images = batch[b"labels"], batch[b"data"]
    return images.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)
