"""Data loaders: their workers outlive a signal, and training goes on in the middle of an epoch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from multiprocessing import active_children
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.augmentation import Augmentation
from datamodules.loading.datasets import ImageBatch, ImageDataset
from datamodules.loading.samplers import BatchIndices, TrainingBatchSampler
from flows.errors import InputError, StorageError
from flows.processes.signals import SIGNALS

GRACE_SECONDS = 60
"""How long a worker that was told to end goes on loading."""


class SignalProofDataLoader(DataLoader):
    """A data loader whose workers go on when they are signalled along with their program.

    SLURM and terminals signal all processes of a job. The program wants to finish its batch, save, and then ends its
    workers itself. Should it not, they end after :data:`GRACE_SECONDS`; and they always end when it is gone.

    Workers send their batches as arrays, which go through pipes: for tensors they need ``/dev/shm``, and where that is
    full, a batch would be waited for without an end.

    Raises:
        StorageError: the workers cannot begin.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.collate_fn: Any = _as_arrays
        self.worker_init_fn = _go_on

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]
        # A worker begins with PyTorch's handlers, which would end it: what comes before it has its own is held back.
        before, others = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), set(active_children())
        try:
            arrays = super().__iter__()
        except OSError as error:
            for worker in set(active_children()) - others:  # begun, and known to nobody who would end them
                worker.kill()
            raise StorageError(
                f"the processes that load data cannot begin ({error.strerror or error}): where /dev/shm is full, make "
                "it larger (docker run --shm-size=1g), or set data.num_workers=0"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return map(_as_tensors, arrays)


class TrainingImages(Dataset[ImageBatch]):
    """A data set read by :class:`BatchIndices`, augmented on the way."""

    def __init__(self, dataset: ImageDataset, augmentation: Augmentation) -> None:
        self.dataset, self.augmentation = dataset, augmentation

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draw: BatchIndices) -> ImageBatch:
        images = self.augmentation(self.dataset.gather(draw.indices), draw.bits)
        return ImageBatch(images, torch.as_tensor(draw.indices))


class TrainingLoader(SignalProofDataLoader):
    """Loads the batches of a :class:`TrainingBatchSampler`, and resumes in the middle of an epoch.

    Lightning keeps :meth:`state_dict` in its checkpoints. Batches that workers have loaded in advance do not count.

    Raises:
        InputError: it resumes within an epoch, but with another number of batches in a step.
    """

    def __init__(self, dataset: TrainingImages, batches: TrainingBatchSampler, **options: Any) -> None:
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
        self._resumed_place = self._place | {"epoch": epoch, "num_batches": 0}  # another iteration starts anew
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


def _as_arrays(batch: ImageBatch) -> tuple[NDArray[Any], ...]:
    return tuple(tensor.numpy() for tensor in batch)


def _as_tensors(arrays: tuple[NDArray[Any], ...]) -> ImageBatch:
    tensors = map(torch.from_numpy, arrays)
    return ImageBatch(*(tensor.pin_memory() if torch.cuda.is_available() else tensor for tensor in tensors))


def _go_on(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
