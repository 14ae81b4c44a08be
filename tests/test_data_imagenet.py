"""The two releases of the scaled-down ImageNet, told apart and never mixed."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from small_sources import npz_files, oord_archives, oord_files, picture, random_images, write_files, write_tar

from datamodules import DownsampledImageNet
from datamodules.datasets.imagenet import COUNTS
from datamodules.datasets.imagenet_npz import PUBLISHED_MD5
from flows.errors import InputError

TRAIN, VALID = random_images(23, 32, 1), random_images(5, 32, 2)


def imagenet(tmp_path, counts=(23, 5), **options):
    options = {"image_size": 32, "source": str(tmp_path / "source"), "num_converters": 1, **options}
    return DownsampledImageNet(prepared_dir=str(tmp_path / "prepared"), expected_counts=counts, **options)


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
    assert data.description.startswith(f"imagenet32-{release}-excerpt23+5 (paper splits): 23 training, 5 validation")
    assert "selected on the test set" in data.description


def test_64_pixels_and_one_channel(tmp_path):
    train, valid = random_images(12, 64, 1), random_images(2, 64, 2)
    npz_files(tmp_path / "source", train, valid)
    data = ready(imagenet(tmp_path, release="npz", counts=(12, 2), image_size=64))
    assert np.array_equal(data.test.gather([0, 1]).numpy(), valid)
    grey = ready(imagenet(tmp_path, release="npz", counts=(12, 2), image_size=64, num_channels=1))
    assert grey.test.gather([0]).shape == (1, 1, 64, 64) and grey.folder != data.folder


def test_the_true_counts_and_names_are_the_default(tmp_path):
    assert COUNTS == {"oord": (1_281_149, 49_999), "npz": (1_281_167, 50_000)}
    for release in ("oord", "npz"):
        data = DownsampledImageNet(image_size=64, release=release, prepared_dir=str(tmp_path))
        assert data.folder_name == f"imagenet64-{release}"
        same = imagenet(tmp_path, counts=COUNTS[release], release=release)
        assert same.folder_name == f"imagenet32-{release}"
    assert len(PUBLISHED_MD5) == 11 and all(len(md5) == 32 for md5 in PUBLISHED_MD5.values())


def test_holdout_splits_are_disjoint(tmp_path):
    train = random_images(300, 32, 3)
    npz_files(tmp_path / "source", train, VALID)
    data = ready(imagenet(tmp_path, release="npz", counts=(300, 5)))
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
    with pytest.raises(InputError, match="lacks the train images of the npz release"):
        imagenet(tmp_path, release="npz", counts=(24, 5)).prepare_data()


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
    refused(tmp_path, "is not a folder", source=str(tmp_path / "gone"))
    (tmp_path / "source").mkdir()
    refused(tmp_path, "lacks the train, test images of the oord release")
    (tmp_path / "source" / "train_32x32").mkdir()
    refused(tmp_path, "lacks the test images of the oord release")


def test_wrong_counts_are_named_with_those_of_the_release(tmp_path):
    npz(tmp_path / "source")
    (tmp_path / "source" / "train_data_batch_10.npz").unlink()
    refused(tmp_path, "holds 21 training and 5 validation images, but the npz release has 23 and 5", release="npz")
    refused(tmp_path, r"release has 1,281,167 and 50,000: get the missing files", counts=None, release="npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "32 and 64"),
        ({"release": "other"}, "oord or npz"),
        ({"splits": "other"}, "holdout"),
        ({"counts": (5,)}, "expected_counts"),
        ({"counts": (0, 5)}, "expected_counts"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        imagenet(tmp_path, **options)


def replace_npz(tmp_path, **arrays):
    npz(tmp_path / "source")
    np.savez(tmp_path / "source" / "train_data_batch_3.npz", **arrays)


FLAT = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": FLAT}, "not a batch of ImageNet: .*labels"),
        ({"labels": [1, 1, 1]}, "not a batch of ImageNet: .*data"),
        ({"data": FLAT, "labels": [0, 1, 1]}, "labels from 0 to 1 instead of 1 to 1000"),
        ({"data": FLAT, "labels": [1, 1, 1001]}, "labels from 1 to 1001"),
        ({"data": FLAT, "labels": [1, 1]}, r"labels of shape \(2,\)"),
        ({"data": FLAT, "labels": [1.0, 1.0, 1.0]}, "labels of shape"),
        ({"data": FLAT.astype(np.float32), "labels": [1, 1, 1]}, "float32 data"),
        ({"data": np.zeros((3, 12288), np.uint8), "labels": [1, 1, 1]}, r"shape \(3, 12288\) instead"),
        ({"data": np.asfortranarray(FLAT), "labels": [1, 1, 1]}, "column by column"),
        ({"data": np.array([{}] * 3), "labels": [1, 1, 1]}, "objects"),
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
    refused(tmp_path, r"val_data\.npz is damaged .*(CRC|magic)", release="npz")
    for broken in (content[: len(content) // 2], b"<html>", b""):
        path.write_bytes(broken)
        refused(tmp_path, r"val_data\.npz is damaged or not an npz file.*get it again", release="npz")


def test_a_bomb_among_npz_files_is_never_unpacked(tmp_path):
    npz(tmp_path / "source")
    header = np.lib.format.header_data_from_array_1_0(FLAT)
    path = tmp_path / "source" / "val_data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(50 << 20))
    assert path.stat().st_size < 100_000
    refused(tmp_path, "sizes contradict each other", release="npz")


def test_the_same_batch_twice_is_refused(tmp_path):
    npz(tmp_path / "source")
    npz(tmp_path / "source" / "copy")
    refused(tmp_path, "is there twice", release="npz")


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
        (flip, "is damaged .a checksum is wrong"),
        (lambda old: old[:-20], "is damaged"),
        (lambda old: old[:100], "is damaged"),
        (lambda old: b"", "is not a picture"),
        (lambda old: b"<html>", "is not a picture"),
        (lambda old: picture(random_images(1, 64)[0]), "64 x 64 pixels instead of 32 x 32"),
        (lambda old: picture(random_images(1, 32)[0], "jpeg"), "is not a picture"),
    ],
)
def test_broken_pngs_are_named(tmp_path, content, message, tar):
    replace_png(tmp_path, content, tar)
    refused(tmp_path, rf"0000007\.png.*{message}.*")


def test_a_truncated_tar_is_named(tmp_path):
    oord_tars(tmp_path / "source")
    path = tmp_path / "source" / "train_32x32.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(tmp_path, r"train_32x32\.tar is (damaged|cut short).*get it again")


def test_images_that_are_not_plain_colour_are_converted_and_counted(tmp_path):
    grey = picture(np.repeat(TRAIN[:1, :1], 3, axis=1)[0])
    file = io.BytesIO()
    Image.open(io.BytesIO(grey)).convert("L").save(file, "png")
    replace_png(tmp_path, lambda old: file.getvalue(), tar=False)
    data = ready(imagenet(tmp_path, splits="paper"))
    assert data.manifest["converted"] == {"mode L": 1}
    assert np.array_equal(data.train.gather([6])[0].numpy(), np.repeat(TRAIN[0, :1], 3, axis=0))
