"""Data sets that are converted once, and read through a memory map ever after."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from datamodules.base import ImageDataModule
from datamodules.conversion import Plan, prepare
from datamodules.prepared_sets import MANIFEST, PreparedImages, open_splits, read_manifest, remedy
from flows.errors import InputError


class PreparedDataModule(ImageDataModule):
    """A data set that is converted on first use into ``prepared_dir`` and read from there ever after.

    A subclass says what it is called (:attr:`folder_name`: two sets that differ must not share one), how it is
    converted (:meth:`plan`), and which images make up the splits (:meth:`assign`). The source is not needed again once
    the set is prepared.

    Args:
        prepared_dir: where prepared sets are kept; each has a folder there.
        num_converters: processes that convert; ``None`` uses every processor that this one may run on.
        **options: see :class:`datamodules.base.ImageDataModule`.
    """

    def __init__(self, *, prepared_dir: str, num_converters: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if self.num_channels not in (1, 3):
            raise InputError(f"data.num_channels must be 1 (luminance) or 3 (colour), not {self.num_channels}")
        if num_converters is not None and num_converters < 1:
            raise InputError(f"data.num_converters must be at least 1, not {num_converters}")
        self.prepared_dir = Path(prepared_dir)
        self.num_converters = num_converters

    @property
    @abstractmethod
    def folder_name(self) -> str:
        """Name of the folder, derived from every argument that changes what is in it."""

    @abstractmethod
    def plan(self, scratch: Path) -> Plan:
        """Look at the source and say how it is converted; ``scratch`` is a folder for what must be unpacked.

        Raises:
            InputError: the source is missing or not what it should be; says what to put where.
        """

    @abstractmethod
    def assign(self, splits: dict[str, PreparedImages]) -> None:
        """Set ``train``, ``val`` and ``test`` from what was prepared."""

    @property
    def folder(self) -> Path:
        """Where the prepared set is, or will be."""
        return self.prepared_dir / self.folder_name

    @property
    def set_name(self) -> str:
        return str(self.manifest["name"])

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known about the prepared set."""
        return read_manifest(self.folder)

    def prepare_data(self) -> None:
        if not (self.folder / MANIFEST).exists():
            prepare(self.folder, self.plan, self.num_converters)

    def setup(self, stage: str | None = None) -> None:
        splits = open_splits(self.folder)
        for path, shape in ((images.path, images.shape) for images in splits.values()):
            if shape[1:] != self.image_shape:
                raise InputError(f"{path} holds images of {shape[1:]}, not {self.image_shape}; {remedy(self.folder)}")
        self.assign(splits)
