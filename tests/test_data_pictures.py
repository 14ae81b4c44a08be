"""Folders of pictures: every mode, every layout, every kind of damage."""

import io
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.sources import encoded, flipped, galaxy_tree, picture, random_images, ready, refused, write_files

from datamodules import Galaxies, ImageFolder
from datamodules.datasets.galaxy import scale_galaxy
from datamodules.preparing.decoding import PictureReader, fit
from datamodules.preparing.storage import verify
from flows.errors import InputError

GREY = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
COLOUR = Image.fromarray(random_images(1, 16)[0].transpose(1, 2, 0))


def with_alpha(opacity):
    image = COLOUR.convert("RGBA")
    image.putalpha(opacity)
    return image


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(COLOUR, exif=exif)


def deep(values):
    return encoded(Image.fromarray(values.astype(np.uint16)))


def png(side, bits):
    """A black PNG of that colour depth, which Pillow can read but not write; a large one ends after 30 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(min(side * (1 + side * 6), 5000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GREY_TO_COLOUR = ["grey repeated as colour"]
PALETTE = COLOUR.quantize(16)
PHOTO = encoded(COLOUR, "mpo", save_all=True, append_images=[GREY.convert("RGB")])


@pytest.mark.parametrize(
    ("content", "expected", "changes"),
    [
        (encoded(COLOUR), COLOUR, []),
        (encoded(COLOUR, "webp", lossless=True), COLOUR, []),
        (encoded(COLOUR, "bmp"), COLOUR, []),
        (encoded(GREY), GREY, GREY_TO_COLOUR),
        (encoded(GREY.convert("1")), GREY.convert("1"), GREY_TO_COLOUR),
        (encoded(GREY.convert("LA")), GREY, GREY_TO_COLOUR),
        (encoded(PALETTE), PALETTE, []),
        (encoded(PALETTE, "gif"), PALETTE, []),
        (encoded(with_alpha(255)), COLOUR, []),
        (encoded(with_alpha(0)), Image.new("RGB", (16, 16), "white"), ["laid over white"]),
        (encoded(GREY, transparency=255), GREY, ["laid over white", *GREY_TO_COLOUR]),  # white over white
        (deep(np.asarray(GREY) * 257.0), GREY, ["16 bits reduced to 8", *GREY_TO_COLOUR]),
        (png(16, 16), Image.new("RGB", (16, 16)), ["16 bits reduced to 8"]),
        (turned(), COLOUR.transpose(Image.Transpose.ROTATE_270), ["turned upright"]),
        (PHOTO, Image.open(io.BytesIO(encoded(COLOUR, "jpeg"))), []),
    ],
)
def test_every_mode_becomes_colour_and_the_reader_says_what_it_changed(content, expected, changes):
    image, found = PictureReader((3, 16, 16))(content)
    assert np.array_equal(image.transpose(1, 2, 0), np.asarray(expected.convert("RGB")))
    assert image.dtype == np.uint8 and found == changes


@pytest.mark.parametrize(
    ("content", "num_channels", "changes"),
    [
        (encoded(GREY), 1, []),
        (encoded(COLOUR), 1, ["colour turned to grey"]),
        (encoded(COLOUR.convert("CMYK"), "jpeg"), 3, ["converted from CMYK"]),
        (encoded(COLOUR.resize((16, 17))), 3, ["cropped or scaled"]),
        (encoded(COLOUR, "avif"), 3, []),
    ],
)
def test_what_is_scaled_or_loses_its_colour_is_said_too(content, num_channels, changes):
    assert PictureReader((num_channels, 16, 16))(content)[1] == changes


def test_twelve_bits_in_sixteen_are_not_taken_for_black():
    values = np.arange(256).reshape(16, 16) * 16
    with pytest.raises(ValueError, match=r"nearly black: give their range, such as value_range=\[0,4095\]"):
        PictureReader((1, 16, 16))(deep(values))
    window, whole = (PictureReader((1, 16, 16), value_range=(0, high))(deep(values))[0][0] for high in (4095, 65535))
    assert np.array_equal(window, np.asarray(GREY)) and np.array_equal(whole, values >> 8)
    assert (PictureReader((1, 16, 16))(deep(0 * values))[0] == 0).all()
    with pytest.raises(InputError, match="must rise"):
        PictureReader((1, 16, 16), value_range=(5, 5))


@pytest.mark.parametrize("file_format", ["png", "gif", "webp"])
def test_an_animation_is_not_taken_for_its_first_frame(file_format):
    with pytest.raises(ValueError, match="animation of 2 frames"):
        PictureReader((3, 16, 16))(encoded(COLOUR, file_format, save_all=True, append_images=[COLOUR.rotate(90)]))


NOT_A_PICTURE = "not a PNG, JPEG, WebP, GIF, BMP or AVIF"


def test_fitting_takes_the_central_square():
    wide = np.zeros((3, 8, 24), np.uint8)
    wide[0, :, 8:16] = 200
    assert np.array_equal(fit(Image.fromarray(wide.transpose(1, 2, 0)), (8, 8)), wide[:, :, 8:16])


def folder(tmp_path, **options):
    options = {"root": str(tmp_path / "root"), "image_size": 16, "num_converters": 1, **options}
    return ImageFolder(prepared_dir=str(tmp_path / "prepared"), **options)


def pictures(prefix, count, seed=0):
    return {f"{prefix}{number:03d}.png": picture(image) for number, image in enumerate(random_images(count, 16, seed))}


def contents(data):
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {
        name: {image.numpy().tobytes() for image in split.gather(range(len(split)))} for name, split in splits.items()
    }


HALF = {"validation_fraction": 0.25, "test_fraction": 0.25}


def test_a_flat_or_nested_folder_is_split_by_content(tmp_path):
    write_files(tmp_path / "root", {**pictures("a/", 30), **pictures("", 30, seed=1), "notes.txt": b"", ".x.png": b""})
    data = ready(folder(tmp_path, **HALF))
    splits = contents(data)
    assert sum(map(len, splits.values())) == 60 == len(set.union(*splits.values()))
    assert len(splits["train"]) > 15 and len(splits["val"]) > 5 and len(splits["test"]) > 5
    # the same pictures under other names fall into the same splits, copies beside their originals
    for path in list((tmp_path / "root").rglob("*.png")):
        if not path.name.startswith("."):
            shutil.copy(path, path.with_name(f"copy_{path.name}"))
    shutil.move(tmp_path / "root", tmp_path / "moved")
    again = ready(folder(tmp_path, root=str(tmp_path / "moved"), **HALF))
    assert contents(again) == splits and len(again.train) == 2 * len(data.train)
    other = ready(folder(tmp_path, root=str(tmp_path / "moved"), split_seed=1, **HALF))
    assert contents(other) != splits


def test_split_folders_are_used_as_they_are(tmp_path):
    files = {**pictures("Training/x/", 5), **pictures("validation/", 3, seed=1), **pictures("test/", 2, seed=2)}
    write_files(tmp_path / "root", files)
    data = ready(folder(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [5, 3, 2]
    assert np.array_equal(data.val.gather([0, 1, 2]).numpy(), random_images(3, 16, 1))
    assert data.set_name == "images-root-16"


def test_folders_names_are_labels_where_every_picture_lies_in_one(tmp_path):
    files = {**pictures("train/dog/", 2), **pictures("train/cat/deep/", 1, seed=1)}
    files |= {**pictures("val/cat/", 1, seed=2), **pictures("test/dog/", 1, seed=3)}
    write_files(tmp_path / "root", files)
    data = ready(folder(tmp_path))
    assert data.manifest["source"]["classes"] == ["cat", "dog"]
    assert [split.labels.tolist() for split in (data.train, data.val, data.test)] == [[0, 1, 1], [0], [1]]
    assert verify(data.folder)
    shutil.move(tmp_path / "root/train/dog/000.png", tmp_path / "root/train")
    shutil.rmtree(data.folder)
    assert ready(folder(tmp_path)).train.labels is None


def test_a_missing_split_folder_is_held_out_from_training(tmp_path):
    write_files(tmp_path / "root", {**pictures("train/", 40), **pictures("test/", 2, seed=2)})
    data = ready(folder(tmp_path, **HALF))
    assert len(data.test) == 2 and len(data.val) > 4 and len(data.train) + len(data.val) == 40


def test_one_channel_is_the_luminance(tmp_path):
    files = {"train/grey.PNG": encoded(GREY), "val/colour.png": encoded(COLOUR), "test/1.png": encoded(GREY)}
    write_files(tmp_path / "root", files)
    data = ready(folder(tmp_path, num_channels=1))
    assert np.array_equal(data.train.gather([0])[0, 0], np.asarray(GREY))
    assert np.array_equal(data.val.gather([0])[0, 0], np.asarray(COLOUR.convert("L")))


def test_unusable_folders_are_named(tmp_path):
    refused(folder(tmp_path), "is not a folder")
    (tmp_path / "root").mkdir()
    refused(folder(tmp_path), "no PNG, JPEG, WebP, GIF, BMP or AVIF file")
    write_files(tmp_path / "root", pictures("", 2))
    refused(folder(tmp_path), "holds 2 pictures, and none of them would be for")
    write_files(tmp_path / "root", pictures("train/", 2))
    refused(folder(tmp_path), r"000\.png lies outside the split folders")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", NOT_A_PICTURE),
        (b"<html>", NOT_A_PICTURE),
        (encoded(COLOUR)[:-30], ""),
        (encoded(COLOUR.resize((200, 200)), "jpeg")[:2000], ""),
        (encoded(COLOUR, "webp")[:60], ""),
        (flipped(encoded(COLOUR), 100), "checksum"),
        (flipped(encoded(COLOUR), 20), ""),
        (png(30_000, 8), "bomb"),
    ],
)
def test_a_broken_file_costs_itself_and_is_named(tmp_path, content, reason, capsys):
    files = {**pictures("train/a/", 3), **pictures("val/a/", 2), **pictures("test/b/", 2)}
    write_files(tmp_path / "root", {**files, "train/b/1.png": content})
    data = ready(folder(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [3, 2, 2] and verify(data.folder)
    assert data.train.labels.tolist() == [0, 0, 0]
    said = capsys.readouterr().out
    assert re.fullmatch(rf"left out: .*train/b/1\.png \(.*{reason}.*\)\n", said)
    ready(folder(tmp_path))  # is prepared, and not compared with what is broken


def test_all_broken_files_are_named_together(tmp_path):
    write_files(
        tmp_path / "root", {f"{split}/{number}.png": b"" for split in ("train", "val", "test") for number in range(3)}
    )
    refused(folder(tmp_path), r"0\.png, .*val/1\.png and 4 more \(it is not .*\): get them again, or remove them")


def test_what_is_hidden_or_foreign_is_left_out_and_named(tmp_path, capsys):
    files = {**pictures("train/", 2), **pictures("val/", 1), **pictures("test/", 1)}
    hidden = ["._000.png", ".ipynb_checkpoints/a.png", "__MACOSX/000.png", "val/@eaDir/small.jpg"]
    write_files(tmp_path / "root", {**files, **dict.fromkeys(hidden, b""), "train/notes.txt": b""})
    (tmp_path / "root/train/gone.png").symlink_to(tmp_path / "nowhere.png")
    data = ready(folder(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 1, 1]
    hidden, text, gone = sorted(capsys.readouterr().out.splitlines(), key=len, reverse=True)
    assert hidden.count(str(tmp_path / "root")) == 4 and hidden.endswith("val/@eaDir (hidden)")
    assert text.endswith("train/notes.txt (not PNG, JPEG, WebP, GIF, BMP or AVIF by its name)")
    assert gone.endswith("train/gone.png (not a file)")


def test_a_folder_that_changed_is_not_silently_used(tmp_path):
    write_files(tmp_path / "root", {**pictures("train/", 2), **pictures("val/", 2), **pictures("test/", 2)})
    ready(folder(tmp_path))
    ready(folder(tmp_path))
    write_files(tmp_path / "root", pictures("train/more_", 1))
    with pytest.raises(InputError, match="has changed since it was prepared"):
        ready(folder(tmp_path))
    shutil.rmtree(tmp_path / "root")
    assert len(ready(folder(tmp_path)).train) == 2  # the source is not needed


GALAXY_COUNTS = {"training": 6, "validation": 2, "test": 3}


def galaxies(tmp_path, **options):
    options = {"source": str(tmp_path / "source"), "num_converters": 1, **options}
    return Galaxies(prepared_dir=str(tmp_path / "prepared"), **options)


@pytest.mark.parametrize("size", [32, 64])
def test_galaxies_are_found_resized_and_pooled(tmp_path, size):
    galaxy_tree(tmp_path / "source", GALAXY_COUNTS)
    data = ready(galaxies(tmp_path, image_size=size))
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 2, 3]
    assert data.set_name == f"galaxy-{size} (holdout splits)"
    path = tmp_path / "source/galaxy_mergers/noninteracting/training/galaxy_0.jpeg"
    assert np.array_equal(data.train.gather([0])[0], scale_galaxy(Image.open(path), (size, size)))


def test_galaxies_in_the_papers_splits_select_on_the_test_images(tmp_path):
    galaxy_tree(tmp_path / "source", GALAXY_COUNTS)
    data = ready(galaxies(tmp_path, splits="paper"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 5, 5]
    assert data.test.gather(range(5)).shape == (5, 3, 32, 32) and "selected on the test set" in data.description


def test_white_stays_white_and_pooling_averages():
    white = Image.new("RGB", (70, 70), "white")
    assert (scale_galaxy(white, (64, 64)) == 255).all() and (scale_galaxy(white, (32, 32)) == 255).all()
    small = Image.fromarray(random_images(1, 64)[0].transpose(1, 2, 0))
    full, pooled = scale_galaxy(small, (64, 64)), scale_galaxy(small, (32, 32))
    expected = full.reshape(3, 32, 2, 32, 2).astype(int).sum((2, 4)) // 4
    assert np.array_equal(pooled, expected)


def test_missing_galaxies_say_what_to_put_where(tmp_path):
    for source in (str(tmp_path), None):
        refused(galaxies(tmp_path, source=source), r"galaxy_mergers/noninteracting/.*data\.source=FOLDER")
    galaxy_tree(tmp_path / "source", {**GALAXY_COUNTS, "test": 0})
    (tmp_path / "source/galaxy_mergers/noninteracting/test").mkdir()
    refused(galaxies(tmp_path), r"test holds no \.jpeg")
