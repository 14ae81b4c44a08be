"""Folders of pictures: every mode, every layout, every kind of damage."""

import io
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.sources import galaxy_tree, picture, random_images, write_files

from datamodules import Galaxies, ImageFolder
from datamodules.datasets.galaxy import scale_galaxy
from datamodules.preparing.decoding import PictureReader, fit
from datamodules.preparing.storage import verify
from flows.errors import InputError


def encoded(image, file_format="png", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(COLOUR), COLOUR),
        (encoded(COLOUR, "webp", lossless=True), COLOUR),
        (encoded(GREY), GREY.convert("RGB")),
        (encoded(GREY.convert("1")), GREY.convert("1").convert("RGB")),
        (encoded(COLOUR.quantize(16)), COLOUR.quantize(16).convert("RGB")),
        (encoded(with_alpha(255)), COLOUR),
        (encoded(with_alpha(0)), Image.new("RGB", (16, 16), "white")),
        (encoded(GREY.convert("LA")), GREY.convert("RGB")),
        (encoded(COLOUR.quantize(16), "gif"), COLOUR.quantize(16).convert("RGB")),
        (encoded(COLOUR, "bmp"), COLOUR),
        (encoded(GREY, transparency=255), GREY.convert("RGB")),  # white over white
        (encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)), GREY.convert("RGB")),
        (turned(), COLOUR.transpose(Image.Transpose.ROTATE_270)),
        (encoded(COLOUR, "mpo", save_all=True, append_images=[GREY.convert("RGB")]), encoded(COLOUR, "jpeg")),
        (encoded(COLOUR, "avif", quality=100, subsampling="4:4:4"), None),
    ],
)
def test_every_mode_becomes_colour(content, expected):
    image, _ = PictureReader((3, 16, 16))(content)
    assert image.shape == (3, 16, 16) and image.dtype == np.uint8
    if expected is None:  # close to it
        assert np.abs(image.transpose(1, 2, 0) - np.asarray(COLOUR, float)).mean() < 8
        return
    expected = Image.open(io.BytesIO(expected)) if isinstance(expected, bytes) else expected
    assert np.array_equal(image.transpose(1, 2, 0), np.asarray(expected))


def deep(values):
    return encoded(Image.fromarray(values.astype(np.uint16)))


def deep_colour():
    """16 x 16 pixels of 16-bit colour, which Pillow can read but not write."""
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(16 * (1 + 16 * 6)))), (b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("content", "num_channels", "changes"),
    [
        (encoded(COLOUR), 3, []),
        (encoded(GREY), 1, []),
        (encoded(COLOUR.quantize(16)), 3, []),
        (encoded(with_alpha(255)), 3, []),
        (encoded(with_alpha(99)), 3, ["laid over white"]),
        (encoded(GREY), 3, ["grey repeated as colour"]),
        (encoded(COLOUR), 1, ["colour turned to grey"]),
        (encoded(COLOUR.convert("CMYK"), "jpeg"), 3, ["converted from CMYK"]),
        (encoded(COLOUR.resize((16, 17))), 3, ["cropped or scaled"]),
        (turned(), 3, ["turned upright"]),
        (deep(np.full((16, 16), 60_000)), 1, ["16 bits reduced to 8"]),
        (deep_colour(), 3, ["16 bits reduced to 8"]),
    ],
)
def test_a_reader_says_what_it_had_to_change(content, num_channels, changes):
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


def huge_png():
    """A file of a hundred bytes that claims 30,000 x 30,000 pixels, its checksums in order."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def flipped(content, where):
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


BROKEN = {
    "empty": (b"", "not a PNG, JPEG, WebP, GIF, BMP or AVIF"),
    "html": (b"<html>", "not a PNG, JPEG, WebP, GIF, BMP or AVIF"),
    "truncated png": (encoded(COLOUR)[:-30], ""),
    "truncated jpeg": (encoded(COLOUR.resize((200, 200)), "jpeg")[:2000], ""),
    "truncated webp": (encoded(COLOUR, "webp")[:60], ""),
    "flipped pixel": (flipped(encoded(COLOUR), 100), "checksum"),
    "flipped header": (flipped(encoded(COLOUR), 20), ""),
    "huge": (huge_png(), "bomb"),
}


def test_fitting_takes_the_central_square():
    wide = np.zeros((3, 8, 24), np.uint8)
    wide[0, :, 8:16] = 200
    assert np.array_equal(fit(Image.fromarray(wide.transpose(1, 2, 0)), (8, 8)), wide[:, :, 8:16])


def folder(tmp_path, **options):
    options = {"root": str(tmp_path / "root"), "image_size": 16, "num_converters": 1, **options}
    return ImageFolder(prepared_dir=str(tmp_path / "prepared"), **options)


def ready(data):
    data.prepare_data()
    data.setup()
    return data


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


def test_batches_come_from_a_prepared_folder(tmp_path):
    write_files(
        tmp_path / "root", {**pictures("train/", 9), **pictures("val/", 3, seed=1), **pictures("test/", 2, seed=2)}
    )
    data = ready(folder(tmp_path, batch_size=4, eval_batch_size=2))
    assert [len(batch.images) for batch in data.train_dataloader()] == [4, 4]
    assert [batch.indices.tolist() for batch in data.val_dataloader()] == [[0, 1], [2]]


def test_a_missing_split_folder_is_held_out_from_training(tmp_path):
    write_files(tmp_path / "root", {**pictures("train/", 40), **pictures("test/", 2, seed=2)})
    data = ready(folder(tmp_path, **HALF))
    assert len(data.test) == 2 and len(data.val) > 4 and len(data.train) + len(data.val) == 40


def test_one_channel_is_the_luminance(tmp_path):
    write_files(tmp_path / "root/train", {"grey.PNG": encoded(GREY)})
    write_files(tmp_path / "root/val", {"colour.png": encoded(COLOUR)})
    write_files(tmp_path / "root/test", {"small.webp": encoded(COLOUR.resize((8, 8)), "webp")})
    grey = ready(folder(tmp_path, num_channels=1))
    assert torch.equal(grey.train.gather([0])[0, 0], torch.from_numpy(np.asarray(GREY).copy()))
    assert torch.equal(grey.val.gather([0])[0, 0], torch.from_numpy(np.array(COLOUR.convert("L"))))


def refused(data, message):
    with pytest.raises(InputError, match=message) as caught:
        ready(data)
    assert "\n" not in str(caught.value)
    folder = Path(data.prepared_dir)
    assert not folder.exists() or all(path.suffix == ".lock" for path in folder.iterdir())


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=FOLDER"):
        folder(tmp_path, root=None)
    refused(folder(tmp_path), "is not a folder")
    (tmp_path / "root").mkdir()
    refused(folder(tmp_path), "no PNG, JPEG, WebP, GIF, BMP or AVIF file")
    write_files(tmp_path / "root", pictures("", 2))
    refused(folder(tmp_path), "holds 2 pictures, and none of them would be for")
    write_files(tmp_path / "root", pictures("train/", 2))
    refused(folder(tmp_path), r"000\.png lies outside the split folders")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_costs_itself_and_is_named(tmp_path, name, capsys):
    files = {**pictures("train/a/", 3), **pictures("val/a/", 2), **pictures("test/b/", 2)}
    write_files(tmp_path / "root", {**files, "train/b/1.png": BROKEN[name][0]})
    data = ready(folder(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [3, 2, 2] and verify(data.folder)
    assert data.train.labels.tolist() == [0, 0, 0]
    said = capsys.readouterr().out
    assert re.fullmatch(rf"left out: .*train/b/1\.png \(.*{BROKEN[name][1]}.*\)\n", said)
    assert ready(folder(tmp_path)).train.labels.tolist() == [
        0,
        0,
        0,
    ]  # is prepared, and not compared with what is broken


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


@pytest.mark.parametrize("options", [{"image_size": 0}, {"validation_fraction": 0.0}, {"test_fraction": 0.96}])
def test_wrong_arguments_are_one_line(tmp_path, options):
    with pytest.raises(InputError, match=r"data\."):
        folder(tmp_path, **options)


GALAXY_COUNTS = {"training": 6, "validation": 2, "test": 3}


def galaxies(tmp_path, **options):
    return Galaxies(
        source=str(tmp_path / "source"), prepared_dir=str(tmp_path / "prepared"), num_converters=1, **options
    )


@pytest.mark.parametrize("size", [32, 64])
def test_galaxies_are_found_resized_and_pooled(tmp_path, size):
    galaxy_tree(tmp_path / "source", GALAXY_COUNTS)
    data = ready(galaxies(tmp_path, image_size=size))
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 2, 3]
    first = data.train.gather([0])
    assert first.shape == (1, 3, size, size) and first.dtype == torch.uint8
    assert data.set_name == f"galaxy-{size} (holdout splits)"
    path = tmp_path / "source/galaxy_mergers/noninteracting/training/galaxy_0.jpeg"
    assert np.array_equal(first[0].numpy(), scale_galaxy(Image.open(path), (size, size)))


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
        data = Galaxies(source=source, prepared_dir=str(tmp_path / "prepared"))
        refused(data, r"galaxy_mergers/noninteracting/.*data\.source=FOLDER")
    galaxy_tree(tmp_path / "source", {**GALAXY_COUNTS, "test": 0})
    (tmp_path / "source/galaxy_mergers/noninteracting/test").mkdir()
    refused(galaxies(tmp_path), r"test holds no \.jpeg")
    with pytest.raises(InputError, match="32 or 64"):
        galaxies(tmp_path, image_size=48)
