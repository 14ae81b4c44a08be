"""ImageNet at 32 x 32 and 64 x 64 pixels, in the two releases that must not be confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from datamodules.datasets import imagenet_npz, imagenet_png
from datamodules.prepared import BenchmarkDataModule
from datamodules.preparing.conversion import Plan
from datamodules.preparing.storage import MANIFEST
from flows.errors import InputError

Release = Literal["oord", "npz"]

COUNTS: dict[str, tuple[int, int]] = {"oord": (1_281_149, 49_999), "npz": (1_281_167, 50_000)}
"""Training and validation images of each release, at either size."""

RELEASES = {"oord": imagenet_png, "npz": imagenet_npz}

AUTHORS = {"oord": "van den Oord's (PNG)", "npz": "Chrabaszcz's (npz)"}


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
        files = RELEASES[release].find_files(source, self.image_size)
        if not all(files.values()):
            missing = ", ".join(split for split, paths in files.items() if not paths)
            raise InputError(f"{source} lacks the {missing} images of ImageNet's {release} release: {self._wanted()}")
        size = self.image_size
        make = RELEASES[release].chunks_of
        splits = {split: [chunk for path in paths for chunk in make(path, size)] for split, paths in files.items()}
        self._require_counts(release, {split: sum(chunk.count for chunk in splits[split]) for split in splits})
        paths = [path for group in files.values() for path in group]
        is_published = release == "npz" and size == 32 and self._expected in (None, COUNTS["npz"])
        return Plan(
            shape=self.image_shape,
            splits=splits,
            source={
                "name": self._folder_of(release),
                "release": release,
                "files": {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths},
                "checksums": imagenet_npz.compare_checksums(paths) if is_published else "none published",
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
        oord, npz = (any(release.find_files(source, self.image_size).values()) for release in RELEASES.values())
        if oord and npz:
            raise InputError(
                f"{source} holds files of both releases of ImageNet, which are never mixed: "
                "give each a folder of its own, or choose with data.release=oord or data.release=npz"
            )
        if not (oord or npz):
            raise InputError(f"{source} holds neither release of ImageNet {self.image_size}: {self._wanted()}")
        return "oord" if oord else "npz"

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
