"""What every data set offers: three splits, and batches of uint8 images with their indices."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.loading.augmentation import Augmentation, draw_bits
from datamodules.loading.datasets import ImageDataset, Subset, held_out
from datamodules.loading.loader import SignalProofDataLoader, TrainingImages, TrainingLoader
from datamodules.loading.samplers import EpochSampler, TrainingBatchSampler
from datamodules.preparing.decoding import PictureReader
from flows.errors import InputError
from flows.randomness import Stream, generator_for


@dataclass(kw_only=True, eq=False)
class ImageDataModule(pl.LightningDataModule):
    """Three splits of images of one shape, and how they are loaded.

    A data set is a data class that derives from this one and promises :meth:`load_splits` alone. Its fields, behind
    these, are the keys of its file in ``conf/data``. Where there is something to download or convert it does so in
    ``prepare_data``, which any number of processes may call at once.

    Args:
        num_channels, image_size: shape of the images, ``(num_channels, image_size, image_size)``; 1 channel is the
            luminance.
        batch_size: images per step of the optimiser, over all devices and all batches that a device accumulates.
        eval_batch_size: images per validation or test batch and device; has no influence on the scores.
        images_per_epoch: images drawn per epoch, see :class:`~datamodules.loading.samplers.EpochSampler`; ``None``
            passes through the training split once.
        max_train_images: images of the training split that are used, evenly spaced; ``None`` uses all.
        num_workers: processes that load data; 0 loads in the main process.
        num_initialization_images: training images that the data-dependent initialisation sees.
        seed: of the order and the augmentation of the training images, at least 0.
        augmentation: what is done to training images at random.

    Raises:
        InputError: a number is out of its range.
    """

    num_channels: int = 3
    image_size: int = 32
    batch_size: int = 64
    eval_batch_size: int = 256
    images_per_epoch: int | None = None
    max_train_images: int | None = None
    num_workers: int = 0
    num_initialization_images: int = 256
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    train: ImageDataset = field(init=False, repr=False)
    val: ImageDataset = field(init=False, repr=False)
    test: ImageDataset = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_channels not in (1, 3):
            raise InputError(f"data.num_channels must be 1 (luminance) or 3 (colour), not {self.num_channels}")
        numbers = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "num_initialization_images": 1}
        for name, least in numbers.items():
            if getattr(self, name) < least:
                raise InputError(f"data.{name} must be at least {least}, not {getattr(self, name)}")
        if self.images_per_epoch is not None and self.images_per_epoch < self.batch_size:
            raise InputError(f"images_per_epoch ({self.images_per_epoch}) must be at least a batch ({self.batch_size})")
        if self.max_train_images is not None and self.max_train_images < 1:
            raise InputError(f"data.max_train_images must be at least 1, not {self.max_train_images}")
        if not isinstance(self.augmentation, Augmentation):
            raise InputError("data.augmentation must be an augmentation: choose one with augment=, such as none")

    @abstractmethod
    def load_splits(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        """Training, validation and test images: the same ones whenever and wherever it is called.

        They are disjoint, unless :attr:`selection_note` says otherwise.
        """

    @property
    def picture_reader(self) -> PictureReader:
        """How a picture from outside becomes an image of this set; also for those that it does not hold."""
        return PictureReader(self.image_shape)

    @property
    def selection_note(self) -> str | None:
        """A sentence for every report, where validation images are not held out from the test; else ``None``."""
        return None

    @property
    def set_name(self) -> str:
        """The name of the data set in reports, which tells apart whatever is not comparable."""
        return type(self).__name__

    @property
    def description(self) -> str:
        """One line for reports, after ``setup``: name, sizes of the splits, shape, and what is to be known."""
        sizes = f"{len(self.train):,} training, {len(self.val):,} validation, {len(self.test):,} test images"
        shape = " x ".join(map(str, self.image_shape))
        note = f". {self.selection_note}" if self.selection_note else ""
        return f"{self.set_name}: {sizes} of {shape}{note}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.image_size, self.image_size

    def setup(self, stage: str | None = None) -> None:
        """Load the three splits, whatever the stage."""
        train, self.val, self.test = self.load_splits()
        most = self.max_train_images
        self.train = train if most is None or most >= len(train) else Subset(train, held_out(len(train), most)[1])

    def initialization_images(self) -> Tensor:
        """A fixed draw of training images, augmented, for data-dependent initialisation; the same on every rank."""
        generator, count = generator_for(Stream.INITIALIZATION, self.seed), self.num_initialization_images
        images = self.train.gather(torch.randint(len(self.train), (count,), generator=generator).tolist())
        return self.augmentation(images, draw_bits(count, Stream.INITIALIZATION, self.seed, 2))

    def micro_batch_size(self, num_devices: int, num_accumulated: int) -> int:
        """Images that a device takes at a time, so that all of them together make a step's batch.

        Raises:
            InputError: the batch cannot be dealt out evenly, or an epoch has fewer images.
        """
        if len(self.train) < self.batch_size and self.images_per_epoch is None:
            raise InputError(
                f"an epoch has {len(self.train)} training images, fewer than one batch: data.batch_size must be at "
                f"most that, not {self.batch_size}"
            )
        shares = num_devices * num_accumulated
        size, left_over = divmod(self.batch_size, shares)
        if left_over:
            near = " or ".join(str(number * shares) for number in (size, size + 1) if number)
            raise InputError(
                f"data.batch_size={self.batch_size} is shared by {num_devices} devices x {num_accumulated} accumulated "
                f"batches: it must be a multiple of {shares}, such as {near}"
            )
        return size

    def require_shares(self, num_devices: int, num_accumulated: int) -> None:
        """Refuse devices among which the images cannot be dealt out.

        Raises:
            InputError: as :meth:`micro_batch_size`, or there is not a validation image for each device.
        """
        self.micro_batch_size(num_devices, num_accumulated)
        if 0 < len(self.val) < num_devices:
            raise InputError(
                f"{num_devices} devices cannot share a validation split of {len(self.val)}: hold out more images, or "
                f"set trainer.devices to fewer"
            )

    def train_dataloader(self) -> DataLoader:
        rank, num_ranks = self._place()
        num_accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        sampler = EpochSampler(len(self.train), self.images_per_epoch, self.seed, rank, num_ranks)
        batches = TrainingBatchSampler(sampler, self.micro_batch_size(num_ranks, num_accumulated), num_accumulated)
        return TrainingLoader(TrainingImages(self.train, self.augmentation), batches, **self._loading())

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_batches(self.val, *self._place())

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_batches(self.test, *self._place())

    def evaluation_batches(self, dataset: ImageDataset, rank: int = 0, num_ranks: int = 1) -> DataLoader:
        """A split in order, every image once; the whole of it, or the part of one of the processes that share it."""
        shard = range(rank, len(dataset), num_ranks)
        return SignalProofDataLoader(dataset, sampler=shard, batch_size=self.eval_batch_size, **self._loading())

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            # Else every iterator draws from the global generator, whose state a resumed training has in common with
            # the undisturbed one.
            "generator": torch.Generator().manual_seed(self.seed),
        }
