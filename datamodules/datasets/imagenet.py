"""ImageNet at 32 x 32 and 64 x 64 pixels, in the two releases that must not be confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from datamodules.datasets import imagenet_npz, imagenet_png
from datamodules.prepared import BenchmarkDataModule
from datamodules.preparing.conversion import Plan
from flows.errors import InputError

Release = Literal["oord", "npz"]

COUNTS: dict[str, tuple[int, int]] = {"oord": (1_281_149, 49_999), "npz": (1_281_167, 50_000)}
"""Training and validation images of each release, at either size."""

RELEASES = {"oord": imagenet_png, "npz": imagenet_npz}


@dataclass(kw_only=True, eq=False)
class DownsampledImageNet(BenchmarkDataModule):
    """ImageNet scaled down, uint8 ``(3, 32, 32)`` or ``(3, 64, 64)``.

    There are two releases, and bits/dim on one say nothing about the other (flows score about 0.3 lower on the second):

    * ``oord`` (van den Oord et al., 2016; the one in the paper): ``train_32x32.tar`` and ``valid_32x32.tar``, or the
      folders of PNG files that they unpack to; 1,281,149 and 49,999 images; no labels.
    * ``npz`` (Chrabaszcz et al., 2017): ``train_data_batch_1.npz`` to ``..._10.npz`` and ``val_data.npz``; 1,281,167
      and 50,000 images; labels 1 to 1000, which are checked and not kept.

    They are named ``imagenet32-oord`` and ``imagenet32-npz`` in every report. Where checksums of the files are known
    they are compared; the manifest and ``prepare.py`` say what came out.

    Splits: the release's validation images are the test images. ``holdout`` holds out every 128th training image
    (about 10,000) for validation; ``paper`` validates on the test images, and every report says so.

    Args:
        image_size: 32 or 64.
        source: a folder with one release's files, as named above (those of the npz release also in folders below).
        release: ``oord`` or ``npz``.
        expected_counts: how many training and validation images there must be; ``None`` means the release's own
            counts. Others are for trying things out on an excerpt, which is then called ``...-excerpt``.

    Raises:
        InputError: no source, or not a whole one; wrong counts, sizes or labels; a damaged file.
        StorageError: the converted images cannot be stored.

    References: van den Oord et al., Pixel Recurrent Neural Networks, 2016. Chrabaszcz et al., A Downsampled Variant of
    ImageNet as an Alternative to the CIFAR datasets, 2017.
    """

    source: str | None = None
    release: Release = "oord"
    expected_counts: Sequence[int] | None = None

    holds_out: ClassVar[int] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (32, 64):
            raise InputError(f"ImageNet is released with 32 and 64 pixels: data.image_size cannot be {self.image_size}")
        if self.release not in RELEASES:
            raise InputError(f"data.release must be oord or npz, not {self.release!r}")
        counts = self.expected_counts or COUNTS[self.release]
        if len(counts) != 2 or min(counts) < 1:
            raise InputError(f"data.expected_counts must be two numbers of at least 1, not {list(counts)}")
        self._expected = tuple(counts)

    @property
    def folder_name(self) -> str:
        excerpt = "" if self._expected == COUNTS[self.release] else "-excerpt" + "+".join(map(str, self._expected))
        return f"imagenet{self.image_size}-{self.release}{excerpt}{'' if self.num_channels == 3 else '-grey'}"

    def plan(self, scratch: Path) -> Plan:
        if self.source is None:
            raise InputError(f"ImageNet {self.image_size} cannot be downloaded without an account: {self._wanted()}")
        source, release = Path(self.source), RELEASES[self.release]
        if not source.is_dir():
            raise InputError(f"data.source={source} is not a folder: {self._wanted()}")
        files = release.find_files(source, self.image_size)
        if not all(files.values()):
            missing = ", ".join(split for split, paths in files.items() if not paths)
            raise InputError(f"{source} lacks the {missing} images of the {self.release} release: {self._wanted()}")
        splits = {
            split: [chunk for path in paths for chunk in release.chunks_of(path, self.image_size)]
            for split, paths in files.items()
        }
        found = tuple(sum(chunk.count for chunk in chunks) for chunks in splits.values())
        if found != self._expected:
            raise InputError(
                f"{source} holds {found[0]:,} training and {found[1]:,} validation images, but the {self.release} "
                f"release has {self._expected[0]:,} and {self._expected[1]:,}: get the missing files"
            )
        paths = [path for group in files.values() for path in group]
        is_published = self.release == "npz" and self.image_size == 32 and found == COUNTS["npz"]
        return Plan(
            shape=self.image_shape,
            splits=splits,
            source={
                "name": self.folder_name,
                "release": self.release,
                "files": {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths},
                "checksums": imagenet_npz.compare_checksums(paths) if is_published else "none published",
            },
        )

    def _wanted(self) -> str:
        size = self.image_size
        return (
            f"put train_{size}x{size}.tar and valid_{size}x{size}.tar (van den Oord's release, the paper's; once at "
            "image-net.org/small, now on Academic Torrents) into a folder, and give it as data.source=FOLDER; or with "
            "data.release=npz train_data_batch_1.npz to _10.npz and val_data.npz (Chrabaszcz's; unpacked from the "
            f"Imagenet{size} zip files at image-net.org/download-images, after registration)"
        )
