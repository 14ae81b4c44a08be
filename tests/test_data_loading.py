"""Batches: what each process sees, in which order, and that nothing is counted twice or left out."""

import errno
import multiprocessing
import os
import re
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from support.programs import ROOT
from torch.utils.data._utils import signal_handling

from datamodules import Augmentation, Digits
from datamodules.base import ImageDataModule
from datamodules.loading.datasets import ImageBatch, Tensors, held_out
from flows.errors import InputError, StorageError

AUGMENTATION = Augmentation(horizontal_flip=True, shift=0.2)


@dataclass(kw_only=True, eq=False)
class Numbered(ImageDataModule):
    """50 images whose first pixel is their number."""

    num_channels: int = 1
    image_size: int = 8

    def load_splits(self):
        numbers = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1)
        images = numbers + torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
        return 3 * (Tensors(images),)


def test_batches_of_workers_need_no_shared_memory():
    """Tensors go through ``/dev/shm``: where it is full, a worker's batch never comes."""
    data = Numbered(batch_size=10, num_workers=1)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, ImageBatch) and not batch.images.is_shared() and not batch.indices.is_shared()
    assert torch.equal(batch.images, data.train.gather(batch.indices.tolist()))


@pytest.mark.filterwarnings("ignore")  # torch complains of its half-made iterator
def test_workers_that_cannot_begin_are_one_line_and_leave_none_behind(monkeypatch):
    data = Numbered(batch_size=10, num_workers=2)
    data.setup()
    loader, begun = data.val_dataloader(), []

    class FullSharedMemory(multiprocessing.get_context("fork").Process):
        def start(self):
            if begun:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().start()
            begun.append(self)

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(context, "Process", FullSharedMemory, raising=False)
    loader.multiprocessing_context = context
    with pytest.raises(StorageError, match=r"No space left.*num_workers=0"):
        iter(loader)
    begun[0].join(30)
    assert begun[0].exitcode == -signal.SIGKILL


def at(rank, num_ranks, **options):
    """The data module as one of several ranks has it."""
    data = Numbered(**options)
    data.setup()
    data.trainer = SimpleNamespace(global_rank=rank, world_size=num_ranks, accumulate_grad_batches=1)
    return data


@pytest.mark.parametrize("num_ranks", [1, 2, 7])
def test_evaluation_shards_are_disjoint_and_whole(num_ranks):
    batches = [list(at(rank, num_ranks, eval_batch_size=8).val_dataloader()) for rank in range(num_ranks)]
    indices = torch.cat([batch.indices for shard in batches for batch in shard])
    assert sorted(indices.tolist()) == list(range(50))


def test_a_process_that_evaluates_alone_gets_the_whole_split():
    data = at(1, 2, eval_batch_size=8)
    batches = list(data.evaluation_batches(data.test))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(50))


def test_training_batches_are_full_and_their_images_belong_to_their_indices():
    batches = list(at(0, 1, batch_size=8).train_dataloader())
    assert [len(batch.images) for batch in batches] == [8] * 6
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices) for batch in batches)


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.indices for batch in batches])


def test_an_epoch_augments_as_the_others_do_not():
    first, second = (epoch_of(at(0, 1, batch_size=50, augmentation=AUGMENTATION), epoch) for epoch in (3, 4))
    assert not torch.equal(first[0][first[1].argsort()], second[0][second[1].argsort()])


@pytest.mark.parametrize("options", [{"batch_size": 25}, {"batch_size": 5, "num_workers": 1}])
def test_augmentation_depends_neither_on_the_batch_size_nor_on_workers(options):
    plain = epoch_of(at(0, 1, batch_size=10, augmentation=AUGMENTATION), 1)
    other = epoch_of(at(0, 1, augmentation=AUGMENTATION, **options), 1)
    assert torch.equal(plain[1], other[1]) and torch.equal(plain[0], other[0])


@pytest.mark.parametrize(("num_ranks", "num_accumulated"), [(2, 1), (1, 3), (2, 3), (3, 2)])
def test_every_step_has_the_same_images_however_they_are_shared(num_ranks, num_accumulated):
    whole, order = epoch_of(at(0, 1, batch_size=12, augmentation=AUGMENTATION), 1)
    ranks = [at(rank, num_ranks, batch_size=12, augmentation=AUGMENTATION) for rank in range(num_ranks)]
    for rank, data in enumerate(ranks):
        data.trainer.accumulate_grad_batches = num_accumulated
        images, indices = epoch_of(data, 1)
        assert len(data.train_dataloader()) == 4 * num_accumulated
        assert torch.equal(indices, order[rank::num_ranks]) and torch.equal(images, whole[rank::num_ranks])


def test_augmentation_touches_training_and_initialisation_alone():
    plain, augmented = at(0, 1, batch_size=8), at(0, 1, batch_size=8, augmentation=AUGMENTATION)
    assert not torch.equal(plain.initialization_images(), augmented.initialization_images())
    assert torch.equal(augmented.initialization_images(), augmented.initialization_images())
    evaluated = next(iter(augmented.val_dataloader()))
    assert torch.equal(evaluated.images, plain.val.gather(evaluated.indices.tolist()))


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(InputError, match="batch_size"):
        at(0, 2, batch_size=52).train_dataloader()


@pytest.mark.parametrize(("total", "number"), [(50, 5), (50_000, 5_000), (7, 3), (10, 0), (5, 5)])
def test_held_out_images_are_disjoint_from_the_rest_and_spread(total, number):
    rest, chosen = held_out(total, number)
    assert len(chosen) == number and sorted([*rest.tolist(), *chosen.tolist()]) == list(range(total))
    if 1 < number < total:
        assert chosen.diff().max() - chosen.diff().min() <= 1


@pytest.mark.parametrize(("options", "shape"), [({}, (1, 8, 8)), ({"num_channels": 3, "image_size": 24}, (3, 24, 24))])
def test_digits_have_three_disjoint_splits(options, shape):
    data = Digits(**options)
    data.setup()
    assert [len(split) for split in (data.train, data.val, data.test)] == [1347, 150, 300]
    first = data.train.gather([0, 1])
    assert first.dtype == torch.uint8 and first.shape == (2, *shape) and first.max() > 200
    assert [sorted(set(split.labels.tolist())) for split in (data.train, data.val, data.test)] == 3 * [list(range(10))]
    assert "digits: 1,347 training, 150 validation, 300 test images" in data.description


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_go_on_when_they_are_signalled_even_before_they_have_begun(number, monkeypatch):
    prepare = signal_handling._set_worker_signal_handlers

    def prepare_and_be_signalled():
        prepare()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", prepare_and_be_signalled)
    data = Numbered(num_workers=1, eval_batch_size=5)
    data.setup()
    assert [len(batch.images) for batch in data.evaluation_batches(data.train)] == 10 * [5]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_data_know_little_of_the_rest():
    text = "".join(path.read_text() for path in (ROOT / "datamodules").rglob("*.py"))
    imported = set(re.findall(r"^ *(?:from|import) (flows[\w.]*)", text, re.MULTILINE))
    assert imported == {"flows.errors", "flows.files", "flows.randomness", "flows.console", "flows.processes.signals"}
