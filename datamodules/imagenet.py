"""ImageNet at 32 x 32 and 64 x 64 pixels, in the two releases that must not be confused."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.archives import file_digest, index_pictures
from datamodules.conversion import Block, Chunk, Plan
from datamodules.decoding import decode_exact, read_file
from datamodules.prepared import BenchmarkDataModule
from datamodules.prepared_sets import MANIFEST
from flows.errors import InputError

Release = Literal["oord", "npz"]

COUNTS: dict[str, tuple[int, int]] = {"oord": (1_281_149, 49_999), "npz": (1_281_167, 50_000)}
"""Training and validation images of each release, at either size."""

AUTHORS = {"oord": "van den Oord's (PNG)", "npz": "Chrabaszcz's (npz)"}

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

IMAGES_PER_CHUNK = 2048
BYTES_PER_BLOCK = 8 << 20


@dataclass(kw_only=True, eq=False)
class DownsampledImageNet(BenchmarkDataModule):
    """ImageNet scaled down, uint8 ``(3, 32, 32)`` or ``(3, 64, 64)``.

    There are two releases, and bits/dim on one say nothing about the other (flows score about 0.3 lower on the second):

    * ``oord`` (van den Oord et al., 2016; the one in the paper): ``train_32x32.tar`` and ``valid_32x32.tar``, or the
      folders of PNG files that they unpack to; 1,281,149 and 49,999 images; no labels.
    * ``npz`` (Chrabaszcz et al., 2017): ``train_data_batch_1.npz`` to ``..._10.npz`` and ``val_data.npz``; 1,281,167
      and 50,000 images; labels 1 to 1000, which are checked and not kept.

    They are told apart by their files and their counts, named ``imagenet32-oord`` and ``imagenet32-npz`` in every
    report, and refused where both lie in one folder. Where checksums of the files are known they are compared, and the
    manifest and ``prepare.py`` say what came out.

    Splits: the release's validation images are the test images. ``holdout`` holds out every 128th training image
    (about 10,000) for validation; ``paper`` validates on the test images, and every report says so.

    Args:
        image_size: 32 or 64.
        source: a folder with one release's files, as named above (those of the npz release also in folders below).
        release: ``oord`` or ``npz``, to insist on one; ``None`` takes the one that is there.
        expected_counts: how many training and validation images there must be; ``None`` means the release's own
            counts. Others are for trying things out on an excerpt, which is then called ``...-excerpt``.

    Raises:
        InputError: no source, or not a whole one; both releases at once; wrong counts, sizes or labels; a damaged file.
        StorageError: the converted images cannot be stored.

    References: van den Oord et al., Pixel Recurrent Neural Networks, 2016. Chrabaszcz et al., A Downsampled Variant of
    ImageNet as an Alternative to the CIFAR datasets, 2017.
    """

    source: str | None = None
    release: Release | None = None
    expected_counts: Sequence[int] | None = None

    holds_out: ClassVar[int] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (32, 64):
            raise InputError(f"ImageNet is released with 32 and 64 pixels: data.image_size cannot be {self.image_size}")
        if self.release is not None and self.release not in get_args(Release):
            raise InputError(f"data.release must be oord or npz, not {self.release!r}")
        counts = self.expected_counts
        if counts is not None and (len(counts) != 2 or min(counts) < 1):
            raise InputError(f"data.expected_counts must be two numbers of at least 1, not {list(counts)}")
        self._expected = None if counts is None else tuple(counts)

    def chosen_release(self) -> Release:
        """The release in use: the one asked for, else the one that is prepared, else the one at the source."""
        if self.release is not None:
            return self.release
        folders = {release: Path(self.prepared_dir, self._folder_of(release)) for release in get_args(Release)}
        prepared = [release for release, folder in folders.items() if (folder / MANIFEST).exists()]
        if len(prepared) == 1:
            return prepared[0]
        if len(prepared) == 2:
            raise InputError(
                f"both releases of ImageNet {self.image_size} are prepared, and they are not comparable: "
                "choose with data.release=oord (the paper's) or data.release=npz"
            )
        return self._detect()

    @property
    def folder_name(self) -> str:
        return self._folder_of(self.chosen_release())

    def plan(self, scratch: Path) -> Plan:
        release = self.chosen_release()
        source = self._require_source()
        files = self._oord_files(source) if release == "oord" else self._npz_files(source)
        if not all(files.values()):
            missing = ", ".join(split for split, paths in files.items() if not paths)
            raise InputError(f"{source} lacks the {missing} images of ImageNet's {release} release: {self._wanted()}")
        size = self.image_size
        make = _picture_chunks if release == "oord" else _npz_chunks
        splits = {split: [chunk for path in paths for chunk in make(path, size)] for split, paths in files.items()}
        self._require_counts(release, {split: sum(chunk.count for chunk in splits[split]) for split in splits})
        paths = [path for group in files.values() for path in group]
        return Plan(
            shape=self.image_shape,
            splits=splits,
            source={
                "name": self._folder_of(release),
                "release": release,
                "files": {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths},
                "checksums": self._compare_checksums(release, paths),
            },
        )

    def _folder_of(self, release: str) -> str:
        excerpt = ""
        if self._expected is not None and self._expected != COUNTS[release]:
            excerpt = "-excerpt" + "+".join(map(str, self._expected))
        return f"imagenet{self.image_size}-{release}{excerpt}{'' if self.num_channels == 3 else '-grey'}"

    def _require_source(self) -> Path:
        if self.source is None:
            raise InputError(f"ImageNet {self.image_size} cannot be downloaded without an account: {self._wanted()}")
        if not Path(self.source).is_dir():
            raise InputError(f"data.source={self.source} is not a folder: {self._wanted()}")
        return Path(self.source)

    def _wanted(self) -> str:
        size = self.image_size
        return (
            f"put train_{size}x{size}.tar and valid_{size}x{size}.tar (van den Oord's release, the paper's; once at "
            "image-net.org/small, now on Academic Torrents), or train_data_batch_1.npz to _10.npz and val_data.npz "
            f"(Chrabaszcz's; unpacked from the Imagenet{size} zip files at image-net.org/download-images, after "
            "registration) into a folder, and give it as data.source=FOLDER"
        )

    def _detect(self) -> Release:
        source = self._require_source()
        oord, npz = any(self._oord_files(source).values()), any(self._npz_files(source).values())
        if oord and npz:
            raise InputError(
                f"{source} holds files of both releases of ImageNet, which are never mixed: "
                "give each a folder of its own, or choose with data.release=oord or data.release=npz"
            )
        if not (oord or npz):
            raise InputError(f"{source} holds neither release of ImageNet {self.image_size}: {self._wanted()}")
        return "oord" if oord else "npz"

    def _oord_files(self, source: Path) -> dict[str, list[Path]]:
        """The archive, or else the folder, of each split."""
        found = {}
        for split, name in (("train", "train"), ("test", "valid")):
            folder = source / f"{name}_{self.image_size}x{self.image_size}"
            archive = folder.with_name(f"{folder.name}.tar")
            found[split] = [archive] if archive.is_file() else [folder] if folder.is_dir() else []
        return found

    def _npz_files(self, source: Path) -> dict[str, list[Path]]:
        places: dict[str, Path] = {}
        for path in sorted([*source.glob("*.npz"), *source.glob("*/*.npz")]):
            if path.name in PUBLISHED_MD5 and path.name in places:
                raise InputError(f"{path.name} is there twice, as {places[path.name]} and {path}: remove one of them")
            places[path.name] = path
        train = [places[name] for name in PUBLISHED_MD5 if name.startswith("train") and name in places]
        return {"train": train, "test": [places["val_data.npz"]] if "val_data.npz" in places else []}

    def _require_counts(self, release: str, counts: dict[str, int]) -> None:
        found = (counts["train"], counts["test"])
        expected = self._expected or COUNTS[release]
        if found == expected:
            return
        other = next(counts for name, counts in COUNTS.items() if name != release)
        is_mixed = found[0] == other[0] or found[1] == other[1]
        hint = "; one of these is a count of the other release, which is never mixed with this one" if is_mixed else ""
        raise InputError(
            f"{self.source} holds {found[0]:,} training and {found[1]:,} validation images, but {AUTHORS[release]} "
            f"release has {expected[0]:,} and {expected[1]:,}{hint}: get the missing files"
        )

    def _compare_checksums(self, release: str, paths: list[Path]) -> str:
        if release != "npz" or self.image_size != 32 or self._expected not in (None, COUNTS["npz"]):
            return "none published"
        with ThreadPoolExecutor(2) as pool:
            digests = pool.map(lambda path: file_digest(path, "md5"), paths)
            different = [path.name for path, md5 in zip(paths, digests, strict=True) if md5 != PUBLISHED_MD5[path.name]]
        return f"differ from the published ones: {', '.join(different)}" if different else "as published"


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


def _picture_chunks(path: Path, size: int) -> Iterator[Chunk]:
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


@dataclass(frozen=True)
class NpzBatch:
    """One npz file: ``data``, uint8 ``(N, 3 size size)``, channel by channel; ``labels``, 1 to 1000, ``(N,)``."""

    path: Path
    count: int
    image_size: int

    def blocks(self) -> Iterator[Block]:
        size, pixels = self.image_size, 3 * self.image_size**2
        at_once = max(BYTES_PER_BLOCK // pixels, 1)
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            self._check_labels(archive)
            with archive.open("data.npy") as file:
                _array_header(file)
                for start in range(0, self.count, at_once):
                    num_images = min(at_once, self.count - start)
                    block = np.frombuffer(_read_exactly(file, num_images * pixels), np.uint8)
                    yield Block(block.reshape(num_images, 3, size, size), Counter())
                if file.read(1):
                    raise ValueError("there is more data than its header says")

    def _check_labels(self, archive: zipfile.ZipFile) -> None:
        with archive.open("labels.npy") as file:
            shape, dtype = _array_header(file)
            if shape != (self.count,) or dtype.kind not in "iu":
                raise InputError(f"{self.path} holds {self.count:,} images, but labels of shape {shape}: get it again")
            labels = np.frombuffer(_read_exactly(file, self.count * dtype.itemsize), dtype)
            file.read(1)  # at the end the checksum is compared
        if self.count and not (labels.min() >= 1 and labels.max() <= NUM_CLASSES):
            found = f"{labels.min()} to {labels.max()}"
            raise InputError(f"{self.path} has labels from {found} instead of 1 to {NUM_CLASSES}: get it again")


def _npz_chunks(path: Path, size: int) -> Iterator[NpzBatch]:
    with _explained(path), zipfile.ZipFile(path) as archive:
        with archive.open("data.npy") as file:
            shape, dtype = _array_header(file)
            place = file.tell()
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3 * size**2:
            side = next((side for side in (8, 16, 32, 64) if side != size and shape[1:] == (3 * side**2,)), None)
            found = f"images of {side} x {side}" if side else f"{dtype} data of shape {shape}"
            raise InputError(f"{path} holds {found} instead of uint8 images of {size} x {size}: give that size's files")
        if archive.getinfo("data.npy").file_size != place + shape[0] * shape[1]:
            raise ValueError("its sizes contradict each other")
    yield NpzBatch(path, shape[0], size)


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an ``.npy`` stream, which is left at its first value; no object is ever built from it."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"array format {version} is not known")
    shape, is_fortran, dtype = read(file)
    if is_fortran or dtype.hasobject:
        raise ValueError("it holds objects or is stored column by column")
    return shape, dtype


def _read_exactly(file: IO[bytes], num_bytes: int) -> bytes:
    content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise EOFError("cut short")
    return content


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn everything that reading a damaged npz file raises into one line."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} is no batch of ImageNet: {str(error.args[0])[:80]}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or no npz file ({error}): get it again from its source") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
