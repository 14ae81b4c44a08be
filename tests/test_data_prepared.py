"""Prepared sets are whole or not there: killed, full disks, several processes, damage afterwards."""

import json
import pickle
import resource
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from support.sources import SlowSet, flipped, ready, refused
from support.waiting import wait_until

from datamodules.preparing.storage import PreparedImages, open_splits, verify
from flows.errors import InputError, StorageError

EXPECTED = np.repeat(np.arange(100, dtype=np.uint8), 3)


def start(folder, processes, **slow):
    """Another process that prepares the slow set."""

    def run():
        SlowSet(str(folder), num_converters=processes, **slow).prepare_data()

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def pixels(folder):
    return open_splits(folder)["train"].gather(range(300))[:, 0, 0, 0].numpy()


def test_a_prepared_set_is_an_array_a_split_and_a_manifest(tmp_path):
    data = ready(SlowSet(str(tmp_path)))
    names = sorted(path.name for path in (tmp_path / "slow").iterdir())
    assert names == ["manifest.json", "test.npy", "train.npy", "val.npy"]
    array = np.load(tmp_path / "slow" / "train.npy", allow_pickle=False)
    assert array.shape == (300, 3, 2, 2) and array.dtype == np.uint8
    assert np.array_equal(array[:, 0, 0, 0], EXPECTED)
    manifest = json.loads((tmp_path / "slow" / "manifest.json").read_text())
    assert manifest["name"] == "slow" and manifest["splits"]["train"] == [300, 3, 2, 2]
    assert verify(tmp_path / "slow") == {"train": 300, "val": 6, "test": 6}
    assert data.description == "slow: 300 training, 6 validation, 6 test images of 3 x 2 x 2"


def test_several_processes_convert_to_the_same_bytes(tmp_path):
    SlowSet(str(tmp_path / "one")).prepare_data()
    SlowSet(str(tmp_path / "two"), num_converters=2).prepare_data()
    for name in ("train.npy", "test.npy", "manifest.json"):
        assert (tmp_path / "one/slow" / name).read_bytes() == (tmp_path / "two/slow" / name).read_bytes()


def test_preparing_draws_nothing_from_the_generator_of_a_training(tmp_path):
    before = torch.get_rng_state()
    SlowSet(str(tmp_path)).prepare_data()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_conversion_is_started_over(tmp_path, processes):
    process = start(tmp_path, processes, seconds=0.02)
    wait_until(lambda: (tmp_path / "notes.txt").exists())
    process.kill()
    process.join()
    assert (tmp_path / "slow.preparing").exists() and not (tmp_path / "slow").exists()
    with pytest.raises(InputError, match="not prepared"):
        SlowSet(str(tmp_path)).setup()
    ready(SlowSet(str(tmp_path)))  # waits for the lock until the killed one's helpers have gone
    assert np.array_equal(pixels(tmp_path / "slow"), EXPECTED) and verify(tmp_path / "slow")
    assert not (tmp_path / "slow.preparing").exists()


def test_processes_that_start_together_prepare_once(tmp_path):
    processes = [start(tmp_path, 1, seconds=0.002) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "notes.txt").read_text().split()) == 104
    assert np.array_equal(pixels(tmp_path / "slow"), EXPECTED)


def test_a_folder_in_the_way_is_kept(tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "mine.txt").write_text("precious")
    with pytest.raises(StorageError, match="slow: Directory not empty"):
        SlowSet(str(tmp_path)).prepare_data()
    assert (tmp_path / "slow" / "mine.txt").read_text() == "precious"
    assert not (tmp_path / "slow.preparing").exists()


def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        refused(SlowSet(str(tmp_path / "new")), "File too large", StorageError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="prepared_dir"):
        ready(SlowSet(str(tmp_path / "file")))


@pytest.fixture
def folder(tmp_path):
    SlowSet(str(tmp_path)).prepare_data()
    return tmp_path / "slow"


def test_a_flipped_bit_is_found_by_verification(folder):
    content = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(flipped(content, len(content) - 1))
    with pytest.raises(InputError, match=r"train\.npy has changed"):
        verify(folder)


def test_a_damaged_or_missing_array_is_named_when_it_is_opened(folder):
    content = (folder / "train.npy").read_bytes()
    for damaged in (content[:-1], flipped(content, 20), b"", None):
        (folder / "train.npy").unlink()
        if damaged is not None:
            (folder / "train.npy").write_bytes(damaged)
        with pytest.raises(InputError, match=r"train\.npy.*prepare it again"):
            open_splits(folder)


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', '{"format": 99, "splits": {}}'])
def test_a_damaged_manifest_is_one_line(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="manifest"):
        open_splits(folder)


def test_images_are_copies_and_travel_to_other_processes_by_name(folder):
    images = open_splits(folder)["train"]
    first = images.gather([5, 0, 5])
    assert first[:, 0, 0, 0].tolist() == [1, 0, 1]
    first.zero_()
    assert len(pickle.dumps(images)) < 1000
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy.gather([5]), images.gather([5])) and images.gather([5]).max() == 1
    assert isinstance(copy, PreparedImages) and copy.gather([]).shape == (0, 3, 2, 2)
