"""Any folder of pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.prepared import PreparedDataModule
from datamodules.preparing.conversion import Plan
from datamodules.preparing.decoding import FORMATS_IN_WORDS, PictureReader
from datamodules.preparing.pictures import Place, list_pictures, picture_chunks
from datamodules.preparing.reading import UnreadableError, in_groups
from datamodules.preparing.storage import MANIFEST
from flows.console import progress, say
from flows.errors import InputError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(kw_only=True, eq=False)
class ImageFolder(PreparedDataModule):
    """The pictures in a folder and below it, uint8 ``(C, image_size, image_size)``.

    Of each picture the largest central square is scaled to ``image_size`` (bicubic, with antialiasing). Other modes are
    converted (:class:`datamodules.preparing.decoding.PictureReader` says how). What is hidden, is not a picture or
    cannot be read is left out, and named.

    Splits: the folders ``train``, ``val`` (or ``validation``) and ``test`` at the top, where there are such. Held-out
    images that have no folder are taken from the rest: each file's place follows from a hash of its content, so that
    copies of a picture come to lie in the same split, and added files move no others.

    Where every picture lies in a folder (below that of its split), the labels are the topmost folders' names, in order.

    Args:
        root: the folder.
        validation_fraction, test_fraction: parts of the images that are held out where there are no such folders.
        split_seed: of the hash; another one, other splits. It has nothing to do with the run's seed.
        value_range: of the values of 16-bit pictures, such as ``(0, 4095)``; ``None`` is the whole range, and refuses
            pictures that would be nearly black.

    Raises:
        InputError: no such folder, or no picture in it that can be read; an empty split; a picture beside the split
            folders; or the folder has changed since it was prepared.
        StorageError: the converted images cannot be stored.
    """

    root: str | None = None
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    split_seed: int = 0
    value_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:
            raise InputError("data=images needs a folder of pictures: give it as data.root=FOLDER")
        if self.image_size < 1:
            raise InputError(f"data.image_size must be at least 1, not {self.image_size}")
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) <= 0 or sum(fractions) >= 1:
            raise InputError("data.validation_fraction and data.test_fraction must be above 0 and below 1 together")
        self._root = Path(self.root)
        self._unreadable: dict[str, str] = {}

    @property
    def picture_reader(self) -> PictureReader:
        return PictureReader(self.image_shape, value_range=self.value_range)

    @property
    def folder_name(self) -> str:
        root = self._root.resolve()
        settings = [str(root), self.validation_fraction, self.test_fraction, self.split_seed]
        settings += [] if self.value_range is None else [*self.value_range]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        grey = "" if self.num_channels == 3 else "-grey"
        return f"images-{_plain(root.name)}-{self.image_size}{grey}-{digest}"

    def prepare_data(self) -> None:
        if (self.folder / MANIFEST).exists():
            changed = self._root.is_dir() and self.manifest["source"]["listing"] != self._listing(
                list_pictures(self._root)[0]
            )
            if changed:
                raise InputError(
                    f"{self._root} has changed since it was prepared: put it back as it was, or remove {self.folder} "
                    "to prepare it as it is now"
                )
            return
        try:
            super().prepare_data()
        except UnreadableError as error:  # once more without them: one bad file costs that file
            self._unreadable = dict(error.reasons)
            super().prepare_data()
        for line in in_groups(self.manifest["source"]["left_out"]):
            say(f"left out: {line}")

    def plan(self) -> Plan:
        if not self._root.is_dir():
            raise InputError(f"data.root={self._root} is not a folder: give one that holds pictures")
        found, left_out = list_pictures(self._root)
        files = [path for path in found if str(path) not in self._unreadable]
        if self._unreadable and not files:
            raise UnreadableError(self._unreadable)
        if not files:
            raise InputError(f"no {FORMATS_IN_WORDS} file in {self._root}")
        splits = self._split(files)
        for split, paths in splits.items():
            if not paths:
                raise InputError(
                    f"{self._root} holds {len(files)} pictures, and none of them would be for the {split} split: "
                    f"put some into {self._root / split}, or raise data.validation_fraction and data.test_fraction"
                )
        classes = self._classes(files)
        return Plan(
            splits={
                split: picture_chunks([*map(Place, paths)], self.picture_reader) for split, paths in splits.items()
            },
            source={
                "name": f"images-{_plain(self._root.resolve().name)}-{self.image_size}",
                "folder": str(self._root.resolve()),
                "classes": classes,
                "listing": self._listing(found),
                "left_out": left_out | self._unreadable,
            },
            labels={
                split: np.array([classes.index(self._class_of(path)) for path in paths], np.int64)
                for split, paths in splits.items()
                if classes
            },
        )

    def _classes(self, files: Sequence[Path]) -> list[str]:
        """The names of the folders, where every file lies in one; else there are no classes."""
        names = sorted({self._class_of(path) for path in files})
        return [] if "" in names else names

    def _class_of(self, path: Path) -> str:
        """The topmost folder that a file lies in, below that of its split; empty if there is none."""
        folders = path.relative_to(self._root).parts[:-1]
        return next(iter(folders[1:] if _split_named(folders) else folders), "")

    def _split(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        splits: dict[str, list[Path]] = {split: [] for split in SPLIT_FOLDERS}
        rest: list[Path] = []
        for path in files:
            split = _split_named(path.relative_to(self._root).parts[:-1])
            (rest if split is None else splits[split]).append(path)
        if splits["train"] and rest:
            raise InputError(
                f"{rest[0]} lies outside the split folders of {self._root} (train, val, test): move or remove it"
            )
        pool = splits["train"] or rest
        splits["train"] = []
        missing = [split for split in ("val", "test") if not splits[split]]
        with progress("reading", len(pool)) as advance:
            for path in pool:
                splits[self._split_of(path, missing) if missing else "train"].append(path)
                advance(1)
        return splits

    def _split_of(self, path: Path, missing: Sequence[str]) -> str:
        """The split that a file belongs to, from a hash of its content."""
        try:
            content = path.read_bytes()
        except OSError:
            return "train"  # whose conversion will say that it cannot be read
        digest = hashlib.sha256(f"{self.split_seed}:".encode() + content).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        for split, fraction in (("val", self.validation_fraction), ("test", self.test_fraction)):
            if split in missing:
                if position < fraction:
                    return split
                position -= fraction
        return "train"

    def _listing(self, files: Sequence[Path]) -> str:
        """A hash of the files' names, sizes and times of change."""
        digest = hashlib.sha256()
        for path in files:
            state = path.stat()
            digest.update(json.dumps([str(path.relative_to(self._root)), state.st_size, state.st_mtime_ns]).encode())
        return digest.hexdigest()


def _split_named(folders: Sequence[str]) -> str | None:
    """The split whose folder comes first, if it is one."""
    return next((split for split, names in SPLIT_FOLDERS.items() if folders and folders[0].lower() in names), None)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("._") or "root"
