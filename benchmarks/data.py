"""How fast data sets are prepared and read: ``python -m benchmarks.data``; ``--help`` lists the options.

Makes sources of the true formats from photographs in a temporary folder, prepares and reads them, and prints images/s
and peak memory beside the bars that the project sets itself on two processor cores. Each figure is the best of several
repetitions, in processes of their own.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules import CIFAR10, Augmentation, DownsampledImageNet, ImageDataModule, ImageFolder, PhotographCrops
from datamodules.datasets import cifar10
from datamodules.datasets.imagenet import COUNTS
from datamodules.prepared import PreparedDataModule
from flows import console

BARS = {"prepare from npz": 50_000, "prepare from PNG": 8_000, "training batches": 50_000}
"""Images of 32 x 32 a second."""

AUGMENTATION = {"horizontal_flip": True, "shift": 0.1}

PARTS = ("npz", "tar", "folder", "images", "batches")


def main() -> None:
    """Measure what was asked for, and print each figure as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: everything)"
    )
    parser.add_argument("--npz", type=int, default=400_000, help="images in the npz files")
    parser.add_argument("--png", type=int, default=100_000, help="images in the PNG archive and folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console.say("Images of 32 x 32 a second (bar), peak resident MiB: anonymous + mapped files")
    with tempfile.TemporaryDirectory() as name:
        pool = photographs(8192)
        for part in arguments.parts:
            if part == "batches":
                measure_batches(Path(name), pool, arguments.repeats)
            else:
                measure_preparing(part, Path(name), pool, arguments)


def measure_preparing(part: str, folder: Path, pool: np.ndarray, arguments: argparse.Namespace) -> None:
    """A quarter of the images, then all: memory must not grow with them."""
    what = "prepare from npz" if part == "npz" else "prepare from PNG"
    for share in (4, 1):
        count = (arguments.npz if part == "npz" else arguments.png) // share
        source = folder / f"{part}-{share}"
        {"npz": make_npz, "tar": make_tar}.get(part, make_folder)(source, pool, count)
        os.sync()  # a source lies on the disk long before it is prepared
        make = image_folder if part == "images" else imagenet
        seconds, peak = best(arguments.repeats, convert, make, source, count, arguments.processes)
        show(f"{what} ({'data=images' if part == 'images' else part})", count, count / seconds, BARS[what], peak)
        shutil.rmtree(source)


def measure_batches(folder: Path, pool: np.ndarray, repeats: int) -> None:
    """Of the training loader."""
    for count in (50_000, 400_000):
        make_cifar(folder / "cifar", pool, count)
        for augmented in (False, True):
            rate, peak = best(repeats, read, folder, count, augmented, pick=max)
            what = f"training batches of 256{', augmented' if augmented else ''}"
            show(what, count, rate, BARS["training batches"], peak)


def show(what: str, count: int, rate: float, bar: int, peak: tuple[float, float]) -> None:
    """One line of the report."""
    verdict = "met" if rate >= bar else "MISSED"
    line = f"{what}, {count:,} images: {rate:,.0f} ({bar:,} {verdict}), {peak[0]:.0f} + {peak[1]:.0f} MiB"
    console.say(line)


def best(repeats: int, measured: Callable[..., Any], *arguments: Any, pick: Callable = min) -> tuple[float, Any]:
    """The best of several runs, each in a fresh process, and the memory of the last."""
    results = []
    for _ in range(repeats):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(in_fresh_process, (measured, *arguments)))
    return pick(result for result, _ in results), results[-1][1]


def in_fresh_process(measured: Callable[..., float], *arguments: Any) -> tuple[float, tuple[float, float]]:
    """What was measured, and the peak memory of this process (or of the largest child) in MiB."""
    torch.set_num_threads(1)
    multiprocessing.current_process().daemon = False  # may have children
    multiprocessing.set_start_method("fork", force=True)  # the default of programs; a spawned process hands on spawn
    result = measured(*arguments)
    return result, memory()


def memory() -> tuple[float, float]:
    """Anonymous memory of this process or its largest child, and mapped files of this process, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, mapped = (int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return max(anonymous, children), mapped


def convert(make: Callable[..., PreparedDataModule], source: Path, count: int, processes: int) -> float:
    """Seconds to prepare a set."""
    with tempfile.TemporaryDirectory(dir=source.parent) as prepared:
        data = make(source, count, prepared_dir=prepared, num_converters=processes)
        started = time.perf_counter()
        data.prepare_data()
        return time.perf_counter() - started


def imagenet(source: Path, count: int, **options: Any) -> PreparedDataModule:
    release: Any = "npz" if source.name.startswith("npz") else "oord"
    COUNTS[release] = count, 100  # of this process alone
    return DownsampledImageNet(image_size=32, source=str(source), release=release, **options)


def image_folder(source: Path, count: int, **options: Any) -> PreparedDataModule:
    return ImageFolder(image_size=32, root=str(source / "train_32x32"), **options)


def read(folder: Path, count: int, augmented: bool) -> float:
    """Images/s of a whole epoch of the training loader, without workers."""
    cifar10.IMAGES_PER_FILE = count // 5  # in this process alone
    data: ImageDataModule = CIFAR10(
        source=str(folder / "cifar"),
        splits="paper",
        batch_size=256,
        prepared_dir=str(folder / f"prepared-{count}"),
        num_converters=1,
        augmentation=Augmentation(**(AUGMENTATION if augmented else {})),  # type: ignore[arg-type]
    )
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    number, started = 0, time.perf_counter()
    for batch in loader:
        number += len(batch.images)
    return number / (time.perf_counter() - started)


def photographs(number: int) -> np.ndarray:
    """Crops of real photographs, ``(number, 3, 32, 32)``: PNG files of a realistic size."""
    data = PhotographCrops("photos")
    data.setup()
    return data.train.gather(range(0, len(data.train), len(data.train) // number)).numpy()[:number]


def make_npz(folder: Path, pool: np.ndarray, count: int) -> None:
    """Ten training batches and a small validation batch."""
    folder.mkdir(parents=True)
    for number, indices in enumerate(np.array_split(np.arange(count) % len(pool), 10), 1):
        flat = pool[indices].reshape(-1, 3072)
        np.savez(folder / f"train_data_batch_{number}.npz", data=flat, labels=np.ones(len(flat), np.int64))
    np.savez(folder / "val_data.npz", data=pool[:100].reshape(-1, 3072), labels=np.ones(100, np.int64))


def make_tar(folder: Path, pool: np.ndarray, count: int) -> None:
    """The same images as archives of PNG files."""
    folder.mkdir(parents=True)
    for name, contents in png_files(pool, count).items():
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for index, content in enumerate(contents):
                member = tarfile.TarInfo(f"{name}/{index:07d}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def make_folder(folder: Path, pool: np.ndarray, count: int) -> None:
    """The same images as folders of PNG files."""
    for name, contents in png_files(pool, count).items():
        (folder / name).mkdir(parents=True)
        for index, content in enumerate(contents):
            (folder / name / f"{index:07d}.png").write_bytes(content)


def png_files(pool: np.ndarray, count: int) -> dict[str, Iterator[bytes]]:
    """The contents of the files of either split of van den Oord's release."""
    contents = []
    for image in pool:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "png")
        contents.append(file.getvalue())
    return {name: islice(cycle(contents), number) for name, number in (("train_32x32", count), ("valid_32x32", 100))}


def make_cifar(folder: Path, pool: np.ndarray, count: int) -> None:
    """The binary release with ``count`` training images and as many test images as a training file has."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = pool[np.arange(count // 5) % len(pool)].reshape(-1, 3072)
    records = np.concatenate([np.zeros((len(flat), 1), np.uint8), flat], axis=1)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records.tofile(folder / f"{name}.bin")


if __name__ == "__main__":
    main()
