"""Photographs: disjoint splits, fixed crops, seeded order; and pictures from a user's folder."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageBatch, PhotographCrops
from datamodules.datasets.photographs import BLOCK_SIZE
from datamodules.loading.samplers import EpochSampler
from flows import InputError
from flows.measures.bits_per_dim import Score
from flows.measures.codecs import codec_bits_per_dim
from flows.pictures import find_pictures, grid, read_picture, save_png
from flows.programs.inputs import batches


@pytest.fixture(scope="module", params=["photos", "hubble"])
def crops(request):
    data = PhotographCrops(request.param, batch_size=16, images_per_epoch=64)
    data.setup()
    return data


def covered(dataset):
    """Which pixels of each photograph some window of the data set shows."""
    masks = [torch.zeros(photograph.shape[1:], dtype=torch.bool) for photograph in dataset.photographs]
    for number, mask in enumerate(masks):
        places = dataset.places[dataset.places[:, 0] == number]
        starts = torch.zeros_like(mask, dtype=torch.float32)
        starts[places[:, 1], places[:, 2]] = 1
        spread = torch.nn.functional.pad(starts[None], [dataset.size - 1, 0, dataset.size - 1, 0])
        mask |= torch.nn.functional.max_pool2d(spread, dataset.size, stride=1)[0] > 0
    return masks


def test_no_pixel_is_in_two_splits(crops):
    train, val, test = (covered(split) for split in (crops.train, crops.val, crops.test))
    for a, b, c in zip(train, val, test, strict=True):
        assert not (a & b).any()
        assert not (a & c).any()
        assert not (b & c).any()
        assert a.any()
        assert b.any()
        assert c.any()


def test_held_out_images_tile_whole_blocks(crops):
    for split in (crops.val, crops.test):
        assert sum(int(mask.sum()) for mask in covered(split)) == len(split) * 32 * 32
        assert len(split) % (BLOCK_SIZE // 32) ** 2 == 0


def test_windows_of_one_block_are_a_group(crops):
    sizes = torch.unique(crops.test.groups, return_counts=True)[1]
    assert (sizes == (BLOCK_SIZE // 32) ** 2).all()
    assert not set(crops.test.groups.tolist()) & set(crops.val.groups.tolist())


def test_batches_are_uint8_images_with_their_indices(crops):
    batch = next(iter(crops.test_dataloader()))
    assert isinstance(batch, ImageBatch)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape[1:] == (3, 32, 32)
    assert torch.equal(batch.images[5], crops.test.gather([5])[0])
    assert batch.indices.tolist() == list(range(len(batch.indices)))


def test_splits_are_the_same_every_time(crops):
    again = PhotographCrops(crops.collection)
    again.setup()
    assert torch.equal(again.test.places, crops.test.places)
    assert torch.equal(again.val.places, crops.val.places)


def test_an_epoch_longer_than_the_data_begins_another_pass():
    order = EpochSampler(10, 25).order()
    assert torch.equal(order[:10].sort().values, torch.arange(10))
    assert torch.equal(order[10:20].sort().values, torch.arange(10))
    assert len(order[20:].unique()) == len(order) - 20 == 5
    assert not torch.equal(order[:10], order[10:20])


def test_initialization_images_are_the_same_every_time(crops):
    assert torch.equal(crops.initialization_images(), crops.initialization_images())


def test_one_channel_is_the_luminance():
    data = PhotographCrops("photos", num_channels=1)
    data.setup()
    assert data.test.gather([0]).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("options", [dict(image_size=97), dict(num_channels=2), dict(batch_size=0)])
def test_wrong_arguments_are_refused(options):
    with pytest.raises(InputError):
        PhotographCrops("photos", **options)


def test_epochs_differ_and_repeat_by_seed():
    sampler = EpochSampler(100, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == list(range(100))
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochSampler(100, seed=2)) != first


# -- pictures ----------------------------------------------------------------------------------------------------------


def save(path, mode="RGB", size=(8, 8)):
    array = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(array, "RGBA").convert(mode).save(path)


def test_a_folder_s_pictures_are_found_and_read(tmp_path):
    (tmp_path / "deep").mkdir()
    save(tmp_path / "b.png")
    save(tmp_path / "deep" / "a.JPG")
    (tmp_path / "notes.txt").touch()
    paths = find_pictures(tmp_path)
    assert [path.name for path in paths] == ["b.png", "a.JPG"]
    image = read_picture(paths[0], (3, 8, 8))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(paths[0])))


def sixteen_bit_png():
    """8 x 8 pixels of 16-bit colour, which Pillow can read but not write."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(8 * (1 + 8 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("grey.png", lambda path: save(path, "L"), "mode L.*RGB"),
        ("alpha.png", lambda path: save(path, "RGBA"), "mode RGBA.*without alpha"),
        ("deep.png", lambda path: Image.new("I;16", (8, 8)).save(path), "16 bits"),
        ("deep_colour.png", lambda path: path.write_bytes(sixteen_bit_png()), "16 bits"),
        ("see_through.png", lambda path: Image.new("RGB", (8, 8)).save(path, transparency=(0, 0, 0)), "transparent"),
        ("palette.png", lambda path: save(path, "P"), "mode P"),
        ("large.png", lambda path: save(path, size=(9, 8)), "9 x 8 pixels.*8 x 8"),
        ("text.png", lambda path: path.write_text("not a picture"), "not a PNG or JPEG"),
        ("empty.jpg", lambda path: path.touch(), "not a PNG or JPEG"),
        ("cut.png", lambda path: (save(path), path.write_bytes(path.read_bytes()[:120])), "cannot be read"),
        ("gif.png", lambda path: Image.new("P", (8, 8)).save(path, "GIF"), "not a PNG or JPEG"),
    ],
)
def test_pictures_that_do_not_fit_are_named(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        read_picture(tmp_path / name, (3, 8, 8))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no PNG or JPEG"):
        find_pictures(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_pictures(tmp_path / "none")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_keeps_the_pixels_and_their_order(tmp_path, channels):
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, channels, 4, 6)
    save_png(grid(images, 3, gap=2), tmp_path / "grid.png")
    array = np.array(Image.open(tmp_path / "grid.png"))
    assert array.shape[:2] == (2 + 2 * 6, 2 + 3 * 8)
    assert [int(array[3, 3 + 8 * column].max()) for column in range(3)] == [0, 1, 2]
    assert [int(array[9, 3 + 8 * column].max()) for column in range(3)] == [3, 4, 255]


def test_codecs_are_charged_for_whole_files():
    flat, noise = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.randint(0, 256, (1, 3, 32, 32)).to(torch.uint8)
    for codec in ("png", "webp"):
        assert codec_bits_per_dim(flat, codec) < 0.5
        assert codec_bits_per_dim(noise, codec) > 8.0


def test_score_has_its_standard_error():
    score = Score.of(torch.tensor([1.0, 2.0, 3.0]))
    assert score.mean == 2.0
    assert score.standard_error == pytest.approx(1 / 3**0.5)
    assert str(score) == "2.000 +- 0.577"
    assert str(Score.of(torch.tensor([1.5]))) == "1.500"


def test_the_score_of_a_picture_does_not_depend_on_what_lies_beside_it(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png", size=(8, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    numbers = torch.cat([numbers for _, numbers in batches(find_pictures(tmp_path), (3, 8, 8), 2)])
    alone = next(batches([tmp_path / "b.png"], (3, 8, 8), 2))[1]
    assert numbers[1] == alone[0]
    assert numbers[0] == numbers[2] != numbers[1]
    assert numbers.min() >= 0
