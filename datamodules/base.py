"""What every data set offers: batches of uint8 images with their indices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flows.errors import InputError
from flows.randomness import Stream, generator_for


class ImageBatch(NamedTuple):
    """Images (uint8, ``(B, C, H, W)``) and their indices in the split (int64, ``(B,)``)."""

    images: Tensor
    indices: Tensor


class ImageDataset(Dataset[ImageBatch]):
    """A finite, fixed list of images of one shape, read in batches.

    A subclass promises that ``gather(indices)`` returns the same uint8 ``(len(indices), C, H, W)`` tensor every time.
    Whatever is random (order, augmentation) lives outside.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def gather(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``."""

    def __getitem__(self, index: int) -> ImageBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """A whole batch at once: the data loader asks for this."""
        return ImageBatch(self.gather(indices), torch.as_tensor(indices))


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by seed and epoch and dealt out to the ranks of a parallel training.

    The order depends on the seed and the epoch alone, so that a resumed training continues with the images that the
    undisturbed one would have seen. Ranks deal with disjoint shares.

    Args:
        num_images: size of the data set.
        num_samples: images per epoch over all ranks. ``None`` passes through the whole set once, in random order;
            a number draws that many, with replacement.
        seed: at least 0.
        rank, num_ranks: this process among those that train together.
    """

    def __init__(
        self, num_images: int, num_samples: int | None = None, seed: int = 0, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.num_images, self.num_samples, self.seed = num_images, num_samples, seed
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        total = self.num_images if self.num_samples is None else self.num_samples
        return total // self.num_ranks

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(Stream.TRAINING_ORDER, self.seed, self.epoch)
        if self.num_samples is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.randint(self.num_images, (self.num_samples,), generator=generator)
        share = order[self.rank :: self.num_ranks][: len(self)]
        return iter(share.tolist())


class ShardSampler(Sampler[int]):
    """Every ``num_ranks``-th index in order: the shards are disjoint and their union is the set, nothing repeated."""

    def __init__(self, num_images: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.indices = range(rank, num_images, num_ranks)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def _as_it_is(batch: Any) -> Any:
    """``__getitems__`` has made the batch already."""
    return batch


class ImageDataModule(pl.LightningDataModule):
    """Three disjoint splits of images of one shape.

    A subclass sets ``train``, ``val`` and ``test`` (:class:`ImageDataset`) in ``setup``, which must give the same
    splits whenever and wherever it is called.

    Args:
        num_channels, image_size: shape of the images, ``(num_channels, image_size, image_size)``.
        batch_size: images per training batch and process.
        eval_batch_size: images per validation or test batch; has no influence on the scores.
        images_per_epoch: images drawn per epoch, with replacement; ``None`` passes through the training split once.
        num_workers: processes that load data; 0 loads in the main process.
        seed: of the order of the training images, at least 0.
    """

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset

    def __init__(
        self,
        *,
        num_channels: int,
        image_size: int,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        images_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if images_per_epoch is not None and images_per_epoch < batch_size:
            raise InputError(f"images_per_epoch ({images_per_epoch}) must be at least one batch ({batch_size})")
        self.num_channels, self.image_size = num_channels, image_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.images_per_epoch, self.num_workers, self.seed = images_per_epoch, num_workers, seed

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Make the three splits, whatever the stage."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.image_size, self.image_size

    def initialization_images(self, num_images: int = 256) -> Tensor:
        """A fixed draw of training images for data-dependent initialisation, the same on every rank."""
        generator = generator_for(Stream.INITIALIZATION, self.seed)
        return self.train.gather(torch.randint(len(self.train), (num_images,), generator=generator).tolist())

    def train_dataloader(self) -> DataLoader:
        rank, num_ranks = self._place()
        sampler = EpochSampler(len(self.train), self.images_per_epoch, self.seed, rank, num_ranks)
        return self._loader(self.train, sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val, ShardSampler(len(self.val), *self._place()), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, ShardSampler(len(self.test), *self._place()), self.eval_batch_size)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, dataset: ImageDataset, sampler: Sampler, batch_size: int, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,
        )
