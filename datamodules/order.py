"""Which images each process sees, when, and with which random bits; and how a training takes that up again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datamodules.augmentation import Augmentation, draw_bits
from datamodules.sets import ImageBatch, ImageDataset
from datamodules.workers import SteadyLoader
from flows.errors import InputError
from flows.randomness import Stream, generator_for


class Draw(NamedTuple):
    """What to read for one training batch: the images' indices, and 63 random bits for the augmentation of each."""

    indices: list[int]
    bits: Tensor


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


class TrainingLoader(SteadyLoader):
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
