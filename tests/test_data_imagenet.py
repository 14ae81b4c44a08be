"""The two releases of the scaled-down ImageNet, told apart and never mixed."""

import gzip
import tarfile

import numpy as np
import pytest
from support.sources import (
    expect_small_releases,
    flipped,
    npz_files,
    oord_archives,
    oord_files,
    picture,
    random_images,
    ready,
    refused,
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


def oord_tars(folder):
    oord_archives(folder, TRAIN, VALID)


def oord_folders(folder):
    write_files(folder, oord_files(TRAIN, VALID))
    (folder / "train_32x32" / "._0000001.png").write_bytes(b"a Mac was here")


def npz(folder):
    npz_files(folder, TRAIN, VALID)


def npz_compressed_in_folders(folder):
    npz_files(folder / "train", TRAIN, VALID, compressed=True)
    (folder / "val").mkdir()
    (folder / "train" / "val_data.npz").rename(folder / "val" / "val_data.npz")


SOURCES = {"oord": [oord_tars, oord_folders], "npz": [npz, npz_compressed_in_folders]}


@pytest.mark.parametrize(("release", "make"), [(name, make) for name, makes in SOURCES.items() for make in makes])
def test_each_release_is_read_whole(tmp_path, release, make):
    make(tmp_path / "source")
    data = ready(imagenet(tmp_path, release=release, splits="paper"))
    assert np.array_equal(data.train.gather(range(23)).numpy(), TRAIN)
    assert np.array_equal(data.test.gather(range(5)).numpy(), VALID)
    assert data.description.startswith(f"imagenet32-{release} (paper splits): 23 training, 5 validation")
    assert "selected on the test set" in data.description


def test_64_pixels(tmp_path):
    train, valid = random_images(23, 64, 1), random_images(5, 64, 2)
    npz_files(tmp_path / "source", train, valid)
    data = ready(imagenet(tmp_path, release="npz", image_size=64))
    assert np.array_equal(data.test.gather(range(5)).numpy(), valid)


def test_holdout_splits_hold_out_every_128th_image(tmp_path, monkeypatch):
    monkeypatch.setitem(module.COUNTS, "npz", (300, 5))
    npz_files(tmp_path / "source", random_images(300, 32, 3), VALID)
    data = ready(imagenet(tmp_path, release="npz"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [298, 2, 5]


def test_releases_in_one_folder_are_not_mixed(tmp_path):
    oord_tars(tmp_path / "source")
    npz(tmp_path / "source")
    for release in ("oord", "npz"):
        assert ready(imagenet(tmp_path, release=release)).set_name.startswith(f"imagenet32-{release}")


def test_a_missing_source_says_what_to_put_where(tmp_path):
    wanted = r"put train_32x32\.tar.*data\.source=FOLDER.*train_data_batch_1\.npz"
    refused(imagenet(tmp_path, source=None), f"account: {wanted}")
    refused(imagenet(tmp_path), f"source holds 0 .*: {wanted}")
    npz(tmp_path / "source")
    (tmp_path / "source" / "train_data_batch_10.npz").unlink()
    counts = "holds 21 training and 5 validation images, but the npz release has 23 and 5"
    refused(imagenet(tmp_path, release="npz"), counts)


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
    npz(tmp_path / "source")
    np.savez(tmp_path / "source" / "train_data_batch_3.npz", **arrays)
    refused(imagenet(tmp_path, release="npz"), rf"train_data_batch_3\.npz.*{message}")


def test_damaged_npz_files_are_named(tmp_path):
    npz(tmp_path / "source")
    path = tmp_path / "source" / "val_data.npz"
    content = path.read_bytes()
    path.write_bytes(flipped(content, 1000))
    refused(imagenet(tmp_path, release="npz"), r"val_data\.npz \(.*(CRC|magic)")
    for broken in (content[: len(content) // 2], b"<html>", b""):
        path.write_bytes(broken)
        refused(imagenet(tmp_path, release="npz"), r"cannot read .*val_data\.npz .*get it again")


WHOLE = picture(TRAIN[6])


@pytest.mark.parametrize("is_archived", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flipped(WHOLE, len(WHOLE) // 2), "checksum"),
        (picture(random_images(1, 64)[0]), "64 x 64 pixels instead of 32 x 32"),
    ],
)
def test_broken_pngs_are_named(tmp_path, content, message, is_archived):
    name = "train_32x32/0000007.png"
    oord_folders(tmp_path / "source")
    if is_archived:
        files = oord_files(TRAIN, VALID)
        write_tar(
            tmp_path / "source/train_32x32.tar", {key: files[key] for key in files if "train" in key} | {name: content}
        )
    else:
        write_files(tmp_path / "source", {name: content})
    refused(imagenet(tmp_path), rf"0000007\.png.*{message}.*")


def test_the_pictures_of_a_tar_are_sorted_without_links_and_hidden_files(tmp_path):
    archive = tmp_path / "a.tar"
    write_tar(archive, {"x/2.png": b"two", "x/._1.png": b"?", "x/1.png": b"one", "x/readme": b""})
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(archive, "a") as tar:
        tar.addfile(link)
    places = list_archive(archive, ".png")
    assert [(place.name, place.read()) for place in places] == [("1.png", b"one"), ("2.png", b"two")]


def test_what_is_not_a_whole_uncompressed_tar_is_named(tmp_path):
    archive = tmp_path / "a.tar"
    write_tar(archive, {"1.png": WHOLE, "2.png": WHOLE})
    whole = archive.read_bytes()
    for content in (whole[: len(WHOLE)], gzip.compress(whole)):
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*a\.tar .*get it again"):
            list_archive(archive, ".png")
