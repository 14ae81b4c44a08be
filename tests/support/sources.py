"""Small sources in the true formats of the data sets, with the images that they hold."""

import hashlib
import io
import pickle
import struct
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageDataModule
from datamodules.datasets import cifar10, imagenet
from datamodules.prepared import PreparedDataModule
from datamodules.preparing.conversion import Chunk, Plan
from flows.errors import InputError

CIFAR_FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def random_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def cifar_files(release: str) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of a release with four images in each, its training and its test images."""
    images, labels = random_images(24), np.arange(24) % 10
    files = {}
    for number, name in enumerate(CIFAR_FILES):
        part = slice(4 * number, 4 * number + 4)
        if release == "binary":
            records = np.concatenate([labels[part, None].astype(np.uint8), images[part].reshape(-1, 3072)], 1)
            files[f"{name}.bin"] = records.tobytes()
        else:
            files[name] = python2_pickle({b"data": images[part].reshape(-1, 3072), b"labels": labels[part].tolist()})
    return files, images[:-4], images[-4:]


class Python2Pickler(pickle._Pickler):
    """Pickles bytes as Python 2 did, whose strings they were."""

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string}


def python2_pickle(content: dict[bytes, Any]) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def cifar_archive(folder: Path, release: str) -> tuple[Path, np.ndarray, np.ndarray]:
    files, train, test = cifar_files(release)
    inside = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}[release]
    archive = folder / f"cifar-10-{release}.tar.gz"
    write_tar(archive, {f"{inside}/readme.html": b"<html>", **{f"{inside}/{k}": v for k, v in files.items()}}, "w:gz")
    return archive, train, test


def expect_small_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take :func:`cifar_files`, and 23 training and 5 validation images of ImageNet, for what is published."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", 4)
    checksums = {name: hashlib.md5(content).hexdigest() for name, content in cifar_files("python")[0].items()}
    monkeypatch.setattr(cifar10, "PICKLES_MD5", checksums)
    monkeypatch.setattr(imagenet, "COUNTS", {"oord": (23, 5), "npz": (23, 5)})


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def picture(image: np.ndarray, file_format: str = "png", **options: Any) -> bytes:
    """``(3, H, W)`` as a file."""
    return encoded(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), file_format, **options)


def encoded(image: Image.Image, file_format: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def oord_files(train: np.ndarray, valid: np.ndarray) -> dict[str, bytes]:
    """The PNG files of van den Oord's release, in the order of their names."""
    size = train.shape[-1]
    return {
        f"{name}_{size}x{size}/{number:07d}.png": picture(image)
        for name, images in (("train", train), ("valid", valid))
        for number, image in enumerate(images, 1)
    }


def oord_archives(folder: Path, train: np.ndarray, valid: np.ndarray) -> None:
    size, files = train.shape[-1], oord_files(train, valid)
    for name in ("train", "valid"):
        own = {key: value for key, value in reversed(files.items()) if key.startswith(name)}  # a tar is not sorted
        write_tar(folder / f"{name}_{size}x{size}.tar", own)


def npz_files(folder: Path, train: np.ndarray, valid: np.ndarray, compressed: bool = False) -> None:
    """The files of Chrabaszcz's release: ten training batches and one of validation images."""
    folder.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    for number, images in enumerate(np.array_split(train, 10), 1):
        flat, labels = images.reshape(len(images), -1), np.arange(len(images)) % 1000 + 1
        save(folder / f"train_data_batch_{number}.npz", data=flat, labels=labels, mean=flat.mean(0))
    save(folder / "val_data.npz", data=valid.reshape(len(valid), -1), labels=np.full(len(valid), 1000))


def galaxy_tree(folder: Path, counts: dict[str, int], side: int = 100) -> None:
    for name, count in counts.items():
        images = random_images(count, side, seed=len(name))
        write_files(
            folder / "galaxy_mergers" / "noninteracting" / name,
            {f"galaxy_{number}.jpeg": picture(image, "jpeg") for number, image in enumerate(images)},
        )


def slow_images(value: int, note: Path, seconds: float) -> Iterator[np.ndarray]:
    """Three images, all of one value; waits before each reading and leaves a note of it."""
    time.sleep(seconds)
    with open(note, "a") as file:
        file.write(f"{value}\n")
    yield np.full((3, 3, 2, 2), value, np.uint8)


class SlowSet(PreparedDataModule):
    """100 chunks of 3 training images, 2 of test images, each of which may take some time."""

    def __init__(self, prepared_dir: str, seconds: float = 0.0, num_converters: int = 1) -> None:
        super().__init__(prepared_dir=prepared_dir, num_converters=num_converters, num_channels=3, image_size=2)
        self.seconds = seconds

    folder_name = "slow"

    def plan(self) -> Plan:
        note = Path(self.prepared_dir, "notes.txt")
        chunks = [Chunk(3, partial(slow_images, value, note, self.seconds)) for value in range(100)]
        return Plan({"train": chunks, "val": chunks[:2], "test": chunks[:2]}, {"name": "slow"})


def ready(data: ImageDataModule) -> ImageDataModule:
    data.prepare_data()
    data.setup()
    return data


def refused(data: PreparedDataModule, message: str, error: type[Exception] = InputError) -> None:
    """It cannot be prepared, says so in a line, and leaves nothing behind."""
    with pytest.raises(error, match=message) as caught:
        ready(data)
    assert "\n" not in str(caught.value)
    folder = Path(data.prepared_dir)
    assert not folder.exists() or all(path.suffix == ".lock" for path in folder.iterdir())


def flipped(content: bytes, where: int) -> bytes:
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]
