"""What every data set offers: batches of uint8 images with their indices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.augmentation import Augmentation, draw_bits
from datamodules.workers import outlive_signals
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


class Draw(NamedTuple):
    """What to read for one training batch: the images' indices, and 63 random bits for the augmentation of each."""

    indices: list[int]
    bits: Tensor


class Subset(ImageDataset):
    """Some images of a data set, renumbered from 0.

    Args:
        dataset: the whole.
        indices: int64 ``(N,)``, which of its images, in this order.
    """

    def __init__(self, dataset: ImageDataset, indices: Tensor) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: Sequence[int]) -> Tensor:
        return self.dataset.gather(self.indices[torch.as_tensor(indices, dtype=torch.int64)].tolist())


class Concatenation(ImageDataset):
    """Several data sets, one after the other."""

    def __init__(self, *datasets: ImageDataset) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def gather(self, indices: Sequence[int]) -> Tensor:
        wanted, start = torch.as_tensor(indices, dtype=torch.int64), 0
        images = self.datasets[0].gather([])
        images = images.new_empty(len(wanted), *images.shape[1:])
        for dataset in self.datasets:
            here = (start <= wanted) & (wanted < start + len(dataset))
            images[here] = dataset.gather((wanted[here] - start).tolist())
            start += len(dataset)
        return images


class Tensors(ImageDataset):
    """Images in memory, uint8 ``(N, C, H, W)``."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: Sequence[int]) -> Tensor:
        return self.images[torch.as_tensor(indices, dtype=torch.int64)]


def held_out(num_images: int, num_held_out: int) -> tuple[Tensor, Tensor]:
    """Two disjoint lists of indices, ``(num_images - num_held_out,)`` and ``(num_held_out,)``, both in order.

    Those held out lie evenly spaced, so that they are like the rest even where the files are sorted by class; the
    choice depends on nothing but the two numbers.
    """
    chosen = torch.zeros(num_images, dtype=torch.bool)
    spaced = (2 * torch.arange(num_held_out) + 1) * num_images // max(2 * num_held_out, 1)
    chosen[spaced] = True
    return (~chosen).nonzero()[:, 0], spaced


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
        return iter(self.order().tolist())

    def order(self) -> Tensor:
        """The rank's indices in this epoch, int64 ``(len(self),)``."""
        generator = generator_for(Stream.TRAINING_ORDER, self.seed, self.epoch)
        if self.num_samples is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.randint(self.num_images, (self.num_samples,), generator=generator)
        return self._share(order)

    def bits(self) -> Tensor:
        """Random bits for the augmentation of each of :meth:`order`, int64 of the same shape."""
        total = self.num_images if self.num_samples is None else self.num_samples
        return self._share(draw_bits(total, Stream.AUGMENTATION, self.seed, self.epoch))

    def _share(self, whole: Tensor) -> Tensor:
        return whole[self.rank :: self.num_ranks][: len(self)]


class TrainingBatches(Sampler[Draw]):
    """Full batches of an epoch's order, from :attr:`first` on, with the random bits that go with each place in it.

    Args:
        sampler: the rank's order.
        batch_size: images in each batch.
        num_accumulated: so many batches make a step of the optimiser; a step that would be short of some is left out.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, num_accumulated: int = 1) -> None:
        self.sampler, self.batch_size, self.num_accumulated = sampler, batch_size, num_accumulated
        self.first = 0

    def __len__(self) -> int:
        return len(self.sampler) // (self.batch_size * self.num_accumulated) * self.num_accumulated

    def __iter__(self) -> Iterator[Draw]:
        order, bits = self.sampler.order(), self.sampler.bits()
        for number in range(self.first, len(self)):
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield Draw(order[batch].tolist(), bits[batch])


class TrainingImages(Dataset[ImageBatch]):
    """A data set read by :class:`Draw`, augmented on the way."""

    def __init__(self, dataset: ImageDataset, augmentation: Augmentation) -> None:
        self.dataset, self.augmentation = dataset, augmentation

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draw: Draw) -> ImageBatch:
        images = self.augmentation(self.dataset.gather(draw.indices), draw.bits)
        return ImageBatch(images, torch.as_tensor(draw.indices))


class TrainingLoader(DataLoader):
    """Loads :class:`TrainingBatches`, and can be taken up in the middle of an epoch.

    Lightning keeps :meth:`state_dict` in its checkpoints. Batches that workers have loaded in advance do not count.

    Raises:
        InputError: it is taken up within an epoch, but with another number of batches in a step.
    """

    def __init__(self, dataset: TrainingImages, batches: TrainingBatches, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=cast(Any, batches), **options)
        self.batches = batches
        self._place = {"epoch": 0, "num_batches": 0, "num_accumulated": batches.num_accumulated}
        self._resumed_place = self._place

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is loaded before the first batch is asked for. Lightning makes the iterator before it
        # says, in set_epoch, which epoch it is for.
        epoch = self.batches.sampler.epoch
        resumes = epoch == self._resumed_place["epoch"]
        self.batches.first = self._resumed_place["num_batches"] if resumes else 0
        self._require_same_steps()
        self._resumed_place = self._place | {"epoch": epoch, "num_batches": 0}  # whoever iterates again starts anew
        self._place = self._resumed_place | {"num_batches": self.batches.first}
        for batch in super().__iter__():
            self._place["num_batches"] += 1
            yield batch

    def _require_same_steps(self) -> None:
        given = self.batches.num_accumulated
        stored = self._resumed_place.get("num_accumulated", given)
        if self.batches.first and stored != given:
            raise InputError(
                f"the checkpoint lies within an epoch of steps of {stored} batches, not {given}: resume it with "
                f"trainer.accumulate_grad_batches={stored}, or one that was written at the end of an epoch"
            )

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches have been handed out, and how many make a step."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue, in the epoch of ``state``, behind the batches that were handed out."""
        self._resumed_place = state


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
    """Three splits of images of one shape: disjoint, unless :attr:`selection_note` says otherwise.

    A subclass sets ``train``, ``val`` and ``test`` (:class:`ImageDataset`) in ``setup``, which must give the same
    splits whenever and wherever it is called. Where there is something to download or convert it does so in
    ``prepare_data``, which any number of processes may call at once. There are no labels anywhere: where a source has
    some, they are checked, since they tell whether a file is what it claims to be, and left behind.

    Args:
        num_channels, image_size: shape of the images, ``(num_channels, image_size, image_size)``.
        batch_size: images per step of the optimiser, over all devices and all batches that a device accumulates.
        eval_batch_size: images per validation or test batch and device; has no influence on the scores.
        images_per_epoch: images drawn per epoch, with replacement; ``None`` passes through the training split once.
        num_workers: processes that load data; 0 loads in the main process.
        seed: of the order and the augmentation of the training images, at least 0.
        augmentation: what is done to training images at random; ``None`` leaves them as they are.
    """

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset

    selection_note: str | None = None
    """A sentence for every report, where validation images are not held out from the test; else ``None``."""

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
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise InputError(f"data.{name} must be at least 1, not {value}")
        if num_workers < 0:
            raise InputError(f"data.num_workers must be at least 0, not {num_workers}")
        if images_per_epoch is not None and images_per_epoch < batch_size:
            raise InputError(f"images_per_epoch ({images_per_epoch}) must be at least one batch ({batch_size})")
        self.num_channels, self.image_size = num_channels, image_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.images_per_epoch, self.num_workers, self.seed = images_per_epoch, num_workers, seed
        self.augmentation = augmentation or Augmentation()

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

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Make the three splits, whatever the stage."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.num_channels, self.image_size, self.image_size

    def initialization_images(self, num_images: int = 256) -> Tensor:
        """A fixed draw of training images, augmented, for data-dependent initialisation; the same on every rank."""
        generator = generator_for(Stream.INITIALIZATION, self.seed)
        images = self.train.gather(torch.randint(len(self.train), (num_images,), generator=generator).tolist())
        return self.augmentation(images, draw_bits(num_images, Stream.INITIALIZATION, self.seed, 2))

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
        batches = TrainingBatches(sampler, self.micro_batch_size(num_ranks, num_accumulated), num_accumulated)
        return TrainingLoader(TrainingImages(self.train, self.augmentation), batches, **self._loading())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test)

    def evaluation_batches(self, dataset: ImageDataset) -> DataLoader:
        """A whole split in order, every image once, for a process that evaluates alone, whatever trains beside it."""
        return DataLoader(
            dataset, sampler=ShardSampler(len(dataset)), batch_size=self.eval_batch_size, **self._loading()
        )

    def _evaluation_loader(self, dataset: ImageDataset) -> DataLoader:
        sampler = ShardSampler(len(dataset), *self._place())
        return DataLoader(dataset, sampler=sampler, batch_size=self.eval_batch_size, **self._loading())

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": _as_it_is,
            "worker_init_fn": outlive_signals,
            # Else every iterator draws from the global generator, whose state a resumed training has in common with
            # the undisturbed one.
            "generator": torch.Generator().manual_seed(self.seed),
        }
