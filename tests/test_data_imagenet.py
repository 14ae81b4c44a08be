"""The two releases of the scaled-down ImageNet, told apart and never mixed."""

import tarfile

import numpy as np
import pytest
import torch
from support.sources import (
    expect_small_releases,
    npz_files,
    oord_archives,
    oord_files,
    picture,
    random_images,
    write_files,
    write_tar,
)

from datamodules import DownsampledImageNet
from datamodules.datasets import imagenet as module
from datamodules.preparing.pictures import list_archive
from flows.errors import InputError

TRAIN, VALID = random_images(23, 32, 1), random_images(5, 32, 2)


@pytest.fixture(autouse=True)
def small_releases(monkeypatch):
    expect_small_releases(monkeypatch)


def imagenet(tmp_path, **options):
    options = {"image_size": 32, "source": str(tmp_path / "source"), "num_converters": 1, **options}
    return DownsampledImageNet(prepared_dir=str(tmp_path / "prepared"), **options)


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def oord_tars(folder):
    oord_archives(folder, TRAIN, VALID)


def oord_folders(folder):
    write_files(folder, oord_files(TRAIN, VALID))
    (folder / "train_32x32" / "._0000001.png").write_bytes(b"a Mac was here")


def oord_both_ways(folder):
    oord_archives(folder, TRAIN, VALID)
    (folder / "valid_32x32.tar").unlink()
    write_files(folder, oord_files(TRAIN[:0], VALID))


def npz(folder):
    npz_files(folder, TRAIN, VALID)


def npz_compressed_in_folders(folder):
    npz_files(folder / "train", TRAIN, VALID, compressed=True)
    (folder / "val").mkdir()
    (folder / "train" / "val_data.npz").rename(folder / "val" / "val_data.npz")


SOURCES = {"oord": [oord_tars, oord_folders, oord_both_ways], "npz": [npz, npz_compressed_in_folders]}


@pytest.mark.parametrize(("release", "make"), [(name, make) for name, makes in SOURCES.items() for make in makes])
def test_each_release_is_read_whole(tmp_path, release, make):
    make(tmp_path / "source")
    data = ready(imagenet(tmp_path, release=release, splits="paper"))
    assert np.array_equal(data.train.gather(range(23)).numpy(), TRAIN)
    assert np.array_equal(data.test.gather(range(5)).numpy(), VALID)
    assert data.train.gather([0]).dtype == torch.uint8
    assert data.description.startswith(f"imagenet32-{release} (paper splits): 23 training, 5 validation")
    assert "selected on the test set" in data.description


def test_64_pixels_and_one_channel(tmp_path):
    train, valid = random_images(23, 64, 1), random_images(5, 64, 2)
    npz_files(tmp_path / "source", train, valid)
    data = ready(imagenet(tmp_path, release="npz", image_size=64))
    assert np.array_equal(data.test.gather(range(5)).numpy(), valid)
    grey = ready(imagenet(tmp_path, release="npz", image_size=64, num_channels=1))
    assert grey.test.gather([0]).shape == (1, 1, 64, 64) and grey.folder != data.folder


def test_holdout_splits_are_disjoint(tmp_path, monkeypatch):
    monkeypatch.setitem(module.COUNTS, "npz", (300, 5))
    train = random_images(300, 32, 3)
    npz_files(tmp_path / "source", train, VALID)
    data = ready(imagenet(tmp_path, release="npz"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [298, 2, 5]
    seen = np.concatenate([data.train.gather(range(298)).numpy(), data.val.gather(range(2)).numpy()])
    assert len(np.unique(seen.reshape(300, -1), axis=0)) == 300


def test_releases_in_one_folder_are_not_mixed(tmp_path):
    oord_tars(tmp_path / "source")
    npz(tmp_path / "source")
    for release in ("oord", "npz"):
        assert ready(imagenet(tmp_path, release=release)).set_name.startswith(f"imagenet32-{release}")
    for number in range(1, 11):
        (tmp_path / "source" / f"train_data_batch_{number}.npz").unlink()
    with pytest.raises(InputError, match="holds 0 training and 5 validation images, but the npz release has 23 and 5"):
        imagenet(tmp_path, release="npz", num_channels=1).prepare_data()


def test_what_is_prepared_needs_no_source(tmp_path):
    npz(tmp_path / "source")
    ready(imagenet(tmp_path, release="npz"))
    assert len(ready(imagenet(tmp_path, release="npz", source=None)).test) == 5


def refused(tmp_path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        ready(imagenet(tmp_path, **options))
    assert "\n" not in str(caught.value)
    prepared = tmp_path / "prepared"
    assert not prepared.exists() or all(path.suffix == ".lock" for path in prepared.iterdir())


def test_a_missing_source_says_what_to_put_where(tmp_path):
    refused(tmp_path, r"account: put train_32x32\.tar.*data\.source=FOLDER.*train_data_batch_1\.npz", source=None)
    refused(tmp_path, r"gone holds 0 .*: put train_32x32\.tar", source=str(tmp_path / "gone"))
    npz(tmp_path / "source")
    (tmp_path / "source" / "train_data_batch_10.npz").unlink()
    refused(tmp_path, "holds 21 training and 5 validation images, but the npz release has 23 and 5", release="npz")


def test_wrong_arguments_are_one_line(tmp_path):
    with pytest.raises(InputError, match="32 and 64"):
        imagenet(tmp_path, image_size=16)


def replace_npz(tmp_path, **arrays):
    npz(tmp_path / "source")
    np.savez(tmp_path / "source" / "train_data_batch_3.npz", **arrays)


FLAT = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [1, 1, 1]}, "no item named 'data.npy'"),
        ({"data": FLAT.astype(np.float32)}, "float32 data"),
        ({"data": np.zeros((3, 12288), np.uint8)}, r"shape \(3, 12288\) instead"),
        ({"data": np.asfortranarray(FLAT)}, r"shape \(3, 3072\) instead"),
        ({"data": np.array([{}] * 3)}, "object data"),
    ],
)
def test_wrong_npz_files_are_named(tmp_path, arrays, message):
    replace_npz(tmp_path, **arrays)
    refused(tmp_path, rf"train_data_batch_3\.npz.*{message}", release="npz")


def test_damaged_npz_files_are_named(tmp_path):
    npz(tmp_path / "source")
    path = tmp_path / "source" / "val_data.npz"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[1000] ^= 1
    path.write_bytes(flipped)
    refused(tmp_path, r"val_data\.npz \(.*(CRC|magic)", release="npz")
    for broken in (content[: len(content) // 2], b"<html>", b""):
        path.write_bytes(broken)
        refused(tmp_path, r"cannot read .*val_data\.npz .*get it again", release="npz")


def replace_png(tmp_path, content, tar):
    files = oord_files(TRAIN, VALID)
    files["train_32x32/0000007.png"] = content(files["train_32x32/0000007.png"])
    if not tar:
        write_files(tmp_path / "source", files)
        return
    for name in ("train", "valid"):
        own = {key: value for key, value in files.items() if key.startswith(name)}
        write_tar(tmp_path / "source" / f"{name}_32x32.tar", own)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("tar", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flip, "checksum"),
        (lambda old: old[:-20], "get it again"),
        (lambda old: old[:100], "get it again"),
        (lambda old: b"", "not a PNG"),
        (lambda old: b"<html>", "not a PNG"),
        (lambda old: picture(random_images(1, 64)[0]), "64 x 64 pixels instead of 32 x 32"),
    ],
)
def test_broken_pngs_are_named(tmp_path, content, message, tar):
    replace_png(tmp_path, content, tar)
    refused(tmp_path, rf"0000007\.png.*{message}.*")


def test_a_truncated_tar_is_named(tmp_path):
    oord_tars(tmp_path / "source")
    path = tmp_path / "source" / "train_32x32.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(tmp_path, r"cannot read .*train_32x32\.tar .*get it again")


def test_the_pictures_of_a_tar_are_sorted_without_links_and_hidden_files(tmp_path):
    archive = tmp_path / "a.tar"
    write_tar(archive, {"x/2.png": b"two", "x/._1.png": b"?", "x/1.png": b"one", "x/readme": b""})
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(archive, "a") as tar:
        tar.addfile(link)
    places = list_archive(archive, ".png")
    assert [(place.name, place.read()) for place in places] == [("1.png", b"one"), ("2.png", b"two")]


def test_what_is_not_an_uncompressed_tar_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b""}, "w:gz")
    with pytest.raises(InputError, match=r"cannot read .*a\.tar"):
        list_archive(tmp_path / "a.tar", ".png")
