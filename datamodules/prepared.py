"""Data sets that are converted once, and read through a memory map ever after."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import ImageDataModule
from datamodules.loading.datasets import ImageDataset, Subset, held_out
from datamodules.preparing.conversion import Plan, prepare
from datamodules.preparing.storage import MANIFEST, open_splits, read_manifest
from flows.errors import InputError

SELECTED_ON_TEST = (
    "The validation images are the test images, as in the paper: the best checkpoint is selected on the test set, "
    "which makes its test score optimistic"
)
"""What every report says where there is no validation split."""


@dataclass(kw_only=True, eq=False)
class PreparedDataModule(ImageDataModule):
    """A data set that is converted on first use into ``prepared_dir`` and read from there ever after.

    A subclass says what it is called (:attr:`folder_name`: two sets that differ must not share one), how it is
    converted (:meth:`plan`), and which images make up the splits (:meth:`arrange`). The source is not needed again once
    the set is prepared.

    Args:
        prepared_dir: where prepared sets are kept; each has a folder there.
        num_converters: processes that convert; ``None`` uses every processor that this one may run on.
    """

    prepared_dir: str = "data/prepared"
    num_converters: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_converters is not None and self.num_converters < 1:
            raise InputError(f"data.num_converters must be at least 1, not {self.num_converters}")

    @property
    @abstractmethod
    def folder_name(self) -> str:
        """Name of the folder, derived from every argument that changes what is in it."""

    @abstractmethod
    def plan(self) -> Plan:
        """Look at the source and say how it is converted.

        Raises:
            InputError: the source is missing or not what it should be; says what to put where.
        """

    def arrange(self, prepared: dict[str, ImageDataset]) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        """Training, validation and test images from what :meth:`plan` has prepared: as they are."""
        return prepared["train"], prepared["val"], prepared["test"]

    @property
    def folder(self) -> Path:
        """Where the prepared set is, or will be."""
        return Path(self.prepared_dir, self.folder_name)

    @property
    def set_name(self) -> str:
        return str(self.manifest["name"])

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known about the prepared set."""
        return read_manifest(self.folder)

    def prepare_data(self) -> None:
        if not (self.folder / MANIFEST).exists():
            prepare(self.folder, self.plan, self.image_shape, self.num_converters)

    def load_splits(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        return self.arrange({**open_splits(self.folder)})


@dataclass(kw_only=True, eq=False)
class BenchmarkDataModule(PreparedDataModule):
    """A data set on which the paper reports, and its two ways to split it.

    Args:
        splits: ``holdout`` holds out validation images, or takes those of the release. ``paper`` does as the paper's
            code: all of the training images train, and validation is on the test images, which every report says.
    """

    splits: Literal["holdout", "paper"] = "holdout"

    holds_out: ClassVar[int] = 10
    """Where the release has no validation images: the ``holdout`` splits take one of this number of training images."""

    @property
    def selection_note(self) -> str | None:
        return SELECTED_ON_TEST if self.splits == "paper" else None

    @property
    def set_name(self) -> str:
        return f"{super().set_name} ({self.splits} splits)"

    def arrange(self, prepared: dict[str, ImageDataset]) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        train, test = prepared["train"], prepared["test"]
        if self.splits == "paper":
            return train, test, test
        training, validation = held_out(len(train), max(len(train) // self.holds_out, 1))
        return Subset(train, training), Subset(train, validation), test
