"""What the programs that read checkpoints are given: a device, a run's data, and pictures of the user's own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor

from flows import console
from flows.config.building import build_trusted
from flows.errors import InputError, first_line
from flows.models.base import DensityModel
from flows.runs.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from datamodules import ImageDataModule

# What imports datamodules does so when it is called: Lightning comes along, seconds that sampling alone need not wait.


def require_positive(cfg: DictConfig, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: naming the first.
    """
    for name in names:
        if cfg[name] < 1:
            raise InputError(f"{name} must be at least 1, not {cfg[name]}")


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one; any of torch's names is accepted.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used here: {first_line(error)}") from error
    return device


def data_of_run(checkpoint: Path, packages: Sequence[str] = ()) -> ImageDataModule:
    """The data set that a checkpoint was trained on, before anything of it is read.

    Args:
        checkpoint: of the run.
        packages: that its class may come from, besides ``datamodules``.

    Raises:
        InputError: the checkpoint names a class outside of this project.
    """
    from datamodules import Augmentation, ImageDataModule

    config = read_checkpoint(checkpoint)["config"]
    if not isinstance(config.get("data"), dict):
        raise InputError(f"{checkpoint} does not say which data it was trained on: give images=FOLDER")
    data: ImageDataModule = build_trusted(
        config["data"], allowed=(ImageDataModule, Augmentation), packages=("datamodules", *packages)
    )
    return data


def ready(data: ImageDataModule) -> ImageDataModule:
    """A data set, prepared and set up."""
    data.prepare_data()
    data.setup("test")
    return data


def spread(num_images: int, limit: int) -> list[int]:
    """At most ``limit`` indices, spread evenly over a split."""
    count = min(limit, num_images)
    return [index * num_images // count for index in range(count)]


class Pictures:
    """The pictures in a folder as images of a model, converted as the data set of its run converts pictures.

    Args:
        folder: with pictures, and anything else.
        checkpoint: whose data set converts them; where it cannot be built, they are cropped and scaled, with a warning.
        flow: the model.
        value_range: in place of the data set's own, unless it is empty (:class:`PictureReader`).
        as_is: leave out what would have to be changed.
        packages: that the data set's class may come from, besides ``datamodules``.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        flow: DensityModel,
        value_range: Sequence[int] = (),
        as_is: bool = False,
        packages: Sequence[str] = (),
    ) -> None:
        from datamodules.preparing.decoding import FORMATS_IN_WORDS, PictureReader
        from datamodules.preparing.pictures import list_pictures

        if not folder.is_dir():
            raise InputError(f"images={folder} is not a folder: give one that holds pictures")
        if len(value_range) not in (0, 2):
            raise InputError(f"value_range must be two numbers, such as [0,4095], not {[*value_range]}")
        try:
            reader = data_of_run(checkpoint, packages).picture_reader
        except InputError as error:
            console.warn(f"pictures are cropped and scaled, which the run's data set may do otherwise: {error}")
            reader = PictureReader(flow.image_shape)
        self.reader = replace(reader, image_shape=flow.image_shape)
        if value_range:
            self.reader = replace(self.reader, value_range=(value_range[0], value_range[1]))
        self.folder, self.as_is = folder, as_is
        self.paths, self.left_out = list_pictures(folder)
        self.changes = Counter[str]()
        if not self.paths:
            self.tell()
            raise InputError(f"no {FORMATS_IN_WORDS} file in {folder}")

    def batches(self, batch_size: int) -> Iterator[tuple[list[Path], Tensor]]:
        """Paths and images, uint8 ``(B, C, H, W)``, without those that cannot be read.

        Raises:
            InputError: none can be read.
        """
        from datamodules.preparing.pictures import Place
        from datamodules.preparing.reading import UnreadableError, reading

        for start in range(0, len(self.paths), batch_size):
            paths, images = [], []
            for path in self.paths[start : start + batch_size]:
                try:
                    with reading(path):
                        image, changes = self.reader(Place(path).read())
                        if changes and self.as_is:
                            raise ValueError(f"as_is=true refuses: {', '.join(changes)}")
                except UnreadableError as error:
                    self.left_out |= error.reasons
                    continue
                self.changes.update(changes)
                paths.append(path)
                images.append(torch.from_numpy(image.copy()))
            if paths:
                yield paths, torch.stack(images)
        unreadable = {str(path): self.left_out[str(path)] for path in self.paths if str(path) in self.left_out}
        if len(unreadable) == len(self.paths):
            raise UnreadableError(unreadable)

    def tell(self) -> None:
        """Say what was changed, and what was left out and why."""
        from datamodules.preparing.reading import in_groups

        for change, count in self.changes.items():
            console.say(f"{change}: {count:,} of {len(self.paths):,} pictures")
        for line in in_groups(self.left_out):
            console.say(f"left out: {line}")


def numbers_of(images: Tensor) -> Tensor:
    """A number for each image, int64 ``(B,)``: a hash of its pixels.

    An image's noise, and so its score, depends on nothing that lies beside it.
    """
    digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])  # int64 has a sign
