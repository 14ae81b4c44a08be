"""CIFAR10: downloaded, or read from an archive or folder that the user has."""

from __future__ import annotations

import logging
import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import requests
from numpy.typing import ArrayLike

from datamodules.prepared import BenchmarkDataModule
from datamodules.preparing.archives import file_digest, unpack
from datamodules.preparing.conversion import Block, Plan
from flows.errors import InputError, StorageError

MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")

ARCHIVES = {"binary": "cifar-10-binary.tar.gz", "python": "cifar-10-python.tar.gz"}

CHECKSUMS = {
    "binary": "md5:c32a1d4ab5d03f1284b67883e8d87530",
    "python": "md5:c58f30108f718f92721af3b95e74349a",
}
"""As published beside the archives."""

PICKLES_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Of the Python release's files, as torchvision publishes them."""

PICKLED_TYPES = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
"""What a pickled array of numbers is built from: none of these runs what a file says."""

PIXELS = 3 * 32 * 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_FILE = 10_000


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
            unpacked files; ``None`` downloads the binary release.
        mirrors: addresses of folders to download from, tried in order.
        download_dir: where a downloaded archive is kept.
        checksums: of the archives by release, ``binary`` and ``python``, as ``md5:...`` or ``sha256:...``; ``None``
            means the published ones. An archive that differs is refused. Of unpacked files, those of the Python
            release are compared with their published checksums; of the binary release, sizes and labels are checked.
        images_per_file: 10,000; another number is for trying things out on an excerpt, which is then called
            ``cifar10-excerpt``.

    Raises:
        InputError: no archive or folder there; a file that is damaged, cut short or of the wrong size; a wrong
            checksum or label; a pickle that wants to do anything; no mirror that answers.
        StorageError: a download or the converted images cannot be stored.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    source: str | None = None
    mirrors: Sequence[str] = MIRRORS
    download_dir: str = "data/downloads"
    checksums: Mapping[str, str] | None = None
    images_per_file: int = IMAGES_PER_FILE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size != 32:
            raise InputError(f"CIFAR10's images have 32 x 32 pixels: data.image_size cannot be {self.image_size}")
        if self.images_per_file < 1:
            raise InputError(f"data.images_per_file must be at least 1, not {self.images_per_file}")

    @property
    def folder_name(self) -> str:
        excerpt = "" if self.images_per_file == IMAGES_PER_FILE else f"-excerpt{self.images_per_file}"
        return f"cifar10{excerpt}{'' if self.num_channels == 3 else '-grey'}"

    def plan(self, scratch: Path) -> Plan:
        source = Path(self.source) if self.source is not None else self._download()
        found, origin = _find_files(source), {"folder": str(source.resolve())}
        if found is None:
            archive = next((source / name for name in ARCHIVES.values() if (source / name).is_file()), source)
            if not archive.is_file():
                raise InputError(
                    f"there is no CIFAR10 at {source}: give data.source a folder with cifar-10-binary.tar.gz, "
                    "cifar-10-python.tar.gz or their unpacked files, or an archive, or leave it out to download"
                )
            origin = {"archive": str(archive.resolve()), "checksum": self._identify(archive)}
            unpack(archive, scratch)
            found = _find_files(scratch)
        if found is None:
            raise InputError(f"{source} lacks the files of CIFAR10: it is not the release that was expected")
        chunk, train, test = found
        return Plan(
            shape=self.image_shape,
            splits={
                "train": [chunk(path, self.images_per_file) for path in train],
                "test": [chunk(test, self.images_per_file)],
            },
            source={"name": self.folder_name, **origin},
            classes=CLASSES,
        )

    def _identify(self, archive: Path) -> str:
        """The checksum by which an archive is one of the releases."""
        for release, checksum in (self.checksums or CHECKSUMS).items():
            algorithm, _, expected = checksum.partition(":")
            if algorithm not in ("md5", "sha256"):
                raise InputError(f"data.checksums.{release} must start with md5: or sha256:, not {algorithm!r}")
            if file_digest(archive, algorithm) == expected:
                return checksum
        raise InputError(
            f"{archive} has none of the checksums of CIFAR10's archives: it is damaged, cut short or something else; "
            "download it again, or unpack it and give the folder"
        )

    def _download(self) -> Path:
        """The binary release's archive, from the first mirror that delivers it whole."""
        pooch.get_logger().setLevel(logging.WARNING)
        name, reasons = ARCHIVES["binary"], []
        for mirror in self.mirrors:
            url = f"{mirror.rstrip('/')}/{name}"
            try:
                path = pooch.retrieve(
                    url,
                    (self.checksums or CHECKSUMS)["binary"],
                    name,
                    self.download_dir,
                    downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30),
                )
                return Path(path)
            except requests.exceptions.RequestException as error:
                reasons.append(f"{url}: {_reason(error)}")
            except ValueError:  # pooch's word for a checksum that differs; it has removed what came
                reasons.append(f"{url}: what came is not the archive, but cut short or a proxy's page (wrong checksum)")
            except OSError as error:
                raise StorageError(f"cannot store {name} in {self.download_dir}: {error.strerror or error}") from error
        raise InputError(
            f"cannot download {name} ({'; '.join(reasons) or 'no mirrors are given'}): "
            "get it in another way and give its path as data.source"
        )


@dataclass(frozen=True)
class RecordFile:
    """A file of the binary release: records of a label byte and 3072 bytes, channel by channel, row by row."""

    path: Path
    count: int

    def blocks(self) -> Iterator[Block]:
        expected = self.count * (1 + PIXELS)
        try:
            content = np.fromfile(self.path, dtype=np.uint8, count=expected + 1)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(content) != expected:
            raise InputError(
                f"{self.path} has {self.path.stat().st_size:,} bytes instead of {expected:,}: get it again"
            )
        records = content.reshape(self.count, 1 + PIXELS)
        _require_labels(self.path, records[:, 0])
        yield Block(records[:, 1:].reshape(self.count, 3, 32, 32), Counter(), records[:, 0])


@dataclass(frozen=True)
class PickledFile:
    """A file of the Python release: a pickled dict with ``data``, uint8 ``(N, 3072)``, and ``labels``, a list."""

    path: Path
    count: int

    def blocks(self) -> Iterator[Block]:
        # Unpickling can run code: the whole release is known by its checksums, an excerpt is held to plain data.
        if self.count == IMAGES_PER_FILE and file_digest(self.path, "md5") != PICKLES_MD5[self.path.name]:
            raise InputError(f"{self.path} differs from the published file (MD5): get it again")
        content = load_plain(self.path)
        try:
            data, labels = np.asarray(content[b"data"]), content[b"labels"]
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{self.path} is not a batch of CIFAR10: it lacks data or labels") from error
        if data.dtype != np.uint8 or data.shape != (self.count, PIXELS) or len(labels) != self.count:
            found = f"{data.dtype} data of shape {data.shape} and {len(labels)} labels"
            raise InputError(f"{self.path} holds {found} instead of {self.count} images")
        _require_labels(self.path, labels)
        yield Block(data.reshape(self.count, 3, 32, 32), Counter(), labels)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED_TYPES:
            raise InputError(f"wants to use {module}.{name}"[:120])
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_plain(path: Path) -> Any:
    """Unpickle a file that may hold arrays, texts, numbers, lists and dicts; texts of Python 2 come as ``bytes``.

    Raises:
        InputError: the file cannot be read, is damaged, or wants to build or call anything else.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path} {error}, which data never need: do not trust this file") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is damaged or not a pickle ({type(error).__name__}): get it again") from error


def _find_files(source: Path) -> tuple[type[RecordFile | PickledFile], list[Path], Path] | None:
    """The kind of files that lie in a folder or in that of a release below it, those for training, and that to test."""
    for kind, below, ending in ((RecordFile, "cifar-10-batches-bin", ".bin"), (PickledFile, "cifar-10-batches-py", "")):
        for folder in (source, source / below):
            if (folder / f"test_batch{ending}").is_file():
                train = [folder / f"data_batch_{number}{ending}" for number in range(1, 6)]
                return kind, train, folder / f"test_batch{ending}"
    return None


def _require_labels(path: Path, labels: ArrayLike) -> None:
    values = np.asarray(labels)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= len(CLASSES):
        raise InputError(f"{path} has labels other than 0 to {len(CLASSES) - 1}: get it again")


def _reason(error: requests.exceptions.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    kinds = {
        requests.exceptions.ProxyError: "the proxy does not let it through",
        requests.exceptions.SSLError: "the connection is not secure",
        requests.exceptions.Timeout: "no answer in time",
        requests.exceptions.ConnectionError: "no connection",
    }
    return next((reason for kind, reason in kinds.items() if isinstance(error, kind)), type(error).__name__)
