"""Which images each process sees, when, and with which random bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from datamodules.loading.augmentation import draw_bits
from flows.randomness import Stream, generator_for


class BatchIndices(NamedTuple):
    """What to read for one training batch: the images' indices, and 63 random bits for the augmentation of each."""

    indices: list[int]
    bits: Tensor


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by seed and epoch and dealt out to the ranks of a parallel training.

    The order depends on the seed and the epoch alone, so that a resumed training continues with the images that the
    undisturbed one would have seen. Ranks deal with disjoint shares.

    Args:
        num_images: size of the data set.
        num_samples: images per epoch over all ranks. ``None`` passes through the whole set once, in random order. A
            number below ``num_images`` draws that many, with replacement; a larger one begins another pass.
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
        num_samples = self.num_images if self.num_samples is None else self.num_samples
        if num_samples < self.num_images:
            return self._share(torch.randint(self.num_images, (num_samples,), generator=generator))
        passes = [torch.randperm(self.num_images, generator=generator) for _ in range(0, num_samples, self.num_images)]
        return self._share(torch.cat(passes)[:num_samples])

    def bits(self) -> Tensor:
        """Random bits for the augmentation of each of :meth:`order`, int64 of the same shape."""
        total = self.num_images if self.num_samples is None else self.num_samples
        return self._share(draw_bits(total, Stream.AUGMENTATION, self.seed, self.epoch))

    def _share(self, whole: Tensor) -> Tensor:
        return whole[self.rank :: self.num_ranks][: len(self)]


class TrainingBatchSampler(Sampler[BatchIndices]):
    """Full batches of an epoch's order, from :attr:`first` on, with the random bits that go with each place in it.

    Args:
        sampler: the rank's order.
        batch_size: images in each batch.
        num_accumulated: batches that make a step of the optimiser; an incomplete last step is left out.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, num_accumulated: int = 1) -> None:
        self.sampler, self.batch_size, self.num_accumulated = sampler, batch_size, num_accumulated
        self.first = 0

    def __len__(self) -> int:
        return len(self.sampler) // (self.batch_size * self.num_accumulated) * self.num_accumulated

    def __iter__(self) -> Iterator[BatchIndices]:
        order, bits = self.sampler.order(), self.sampler.bits()
        for number in range(self.first, len(self)):
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield BatchIndices(order[batch].tolist(), bits[batch])
