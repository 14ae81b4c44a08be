"""Image data sets, read in batches: what they promise, images in memory, subsets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ImageBatch(NamedTuple):
    """Images (uint8, ``(B, C, H, W)``) and their indices in the split (int64, ``(B,)``)."""

    images: Tensor
    indices: Tensor


class ImageDataset(Dataset[ImageBatch]):
    """A finite, fixed list of images of one shape, read in batches.

    A subclass promises that ``gather(indices)`` returns the same uint8 ``(len(indices), C, H, W)`` tensor every time.
    Whatever is random (order, augmentation) lives outside.
    """

    labels: Tensor | None = None
    """The class of each image, int64 ``(N,)``, where the source has classes; models may ignore it."""

    groups: Tensor | None = None
    """What each image is a part of, int64 ``(N,)``: images of one group are alike, and no independent evidence."""

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


class Subset(ImageDataset):
    """Some images of a data set, renumbered from 0.

    Args:
        dataset: the whole.
        indices: int64 ``(N,)``, which of its images, in this order.
    """

    def __init__(self, dataset: ImageDataset, indices: Tensor) -> None:
        self.dataset, self.indices = dataset, indices
        self.labels = None if dataset.labels is None else dataset.labels[indices]
        self.groups = None if dataset.groups is None else dataset.groups[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: Sequence[int]) -> Tensor:
        return self.dataset.gather(self.indices[torch.as_tensor(indices, dtype=torch.int64)].tolist())


class Tensors(ImageDataset):
    """Images in memory, uint8 ``(N, C, H, W)``, and their labels if there are any."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels

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
