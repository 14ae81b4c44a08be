"""ImageNet at 32 x 32 and 64 x 64 pixels, in the two releases that must not be confused."""

from __future__ import annotations

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
      and 50,000 images; their labels are not kept.

    They are named ``imagenet32-oord`` and ``imagenet32-npz`` in every report.

    Splits: the release's validation images are the test images. ``holdout`` holds out every 128th training image
    (about 10,000) for validation; ``paper`` validates on the test images, and every report says so.

    Args:
        image_size: 32 or 64.
        source: a folder with one release's files, as named above (those of the npz release also in folders below).
        release: ``oord`` or ``npz``.

    Raises:
        InputError: no source, or not a whole one; images of another size; a damaged file.
        StorageError: the converted images cannot be stored.

    References: van den Oord et al., Pixel Recurrent Neural Networks, 2016. Chrabaszcz et al., A Downsampled Variant of
    ImageNet as an Alternative to the CIFAR datasets, 2017.
    """

    source: str | None = None
    release: Release = "oord"

    holds_out: ClassVar[int] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (32, 64):
            raise InputError(f"ImageNet is released with 32 and 64 pixels: data.image_size cannot be {self.image_size}")

    @property
    def folder_name(self) -> str:
        return f"imagenet{self.image_size}-{self.release}{'' if self.num_channels == 3 else '-grey'}"

    def plan(self) -> Plan:
        if self.source is None:
            raise InputError(f"ImageNet {self.image_size} cannot be downloaded without an account: {self._wanted()}")
        splits = RELEASES[self.release].find_chunks(Path(self.source), self.image_size)
        found, expected = [sum(chunk.count for chunk in chunks) for chunks in splits.values()], COUNTS[self.release]
        if found != [*expected]:
            raise InputError(
                f"{self.source} holds {found[0]:,} training and {found[1]:,} validation images, but the {self.release} "
                f"release has {expected[0]:,} and {expected[1]:,}: {self._wanted()}"
            )
        source = {"name": self.folder_name, "release": self.release, "folder": str(Path(self.source).resolve())}
        return Plan(splits, source)

    def _wanted(self) -> str:
        size = self.image_size
        return (
            f"put train_{size}x{size}.tar and valid_{size}x{size}.tar (van den Oord's release, the paper's; once at "
            "image-net.org/small, now on Academic Torrents) into a folder, and give it as data.source=FOLDER; or with "
            "data.release=npz train_data_batch_1.npz to _10.npz and val_data.npz (Chrabaszcz's; unpacked from the "
            f"Imagenet{size} zip files at image-net.org/download-images, after registration)"
        )
