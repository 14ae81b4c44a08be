"""Photographs: disjoint splits, fixed crops, seeded order; and pictures from a user's folder."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, Augmentation, Digits, DownsampledImageNet, Galaxies, ImageFolder, PhotographCrops
from datamodules.datasets.photographs import BLOCK_SIZE
from datamodules.loading.datasets import Subset
from datamodules.loading.samplers import EpochSampler
from flows import InputError
from flows.measures.bits_per_dim import Score
from flows.measures.codecs import codec_bits_per_dim
from flows.pictures import grid, save_png
from flows.programs import inputs
from flows.programs.inputs import Pictures, numbers_of


@pytest.fixture(scope="module")
def crops():
    data = PhotographCrops("photos")
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
        assert not (a & b).any() and not (a & c).any() and not (b & c).any()
        assert a.any() and b.any() and c.any()


def test_held_out_images_tile_whole_blocks(crops):
    for split in (crops.val, crops.test):
        assert sum(int(mask.sum()) for mask in covered(split)) == len(split) * 32 * 32
        assert len(split) % (BLOCK_SIZE // 32) ** 2 == 0


def test_windows_of_one_block_are_a_group(crops):
    sizes = torch.unique(crops.test.groups, return_counts=True)[1]
    assert (sizes == (BLOCK_SIZE // 32) ** 2).all()
    assert not set(crops.test.groups.tolist()) & set(crops.val.groups.tolist())


def test_an_epoch_longer_than_the_data_begins_another_pass():
    order = EpochSampler(10, 25).order()
    assert torch.equal(order[:10].sort().values, torch.arange(10))
    assert torch.equal(order[10:20].sort().values, torch.arange(10))
    assert len(order[20:].unique()) == len(order) - 20 == 5
    assert not torch.equal(order[:10], order[10:20])


def test_one_channel_is_the_luminance():
    data = PhotographCrops("photos", num_channels=1)
    data.setup()
    assert data.test.gather([0]).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (PhotographCrops, {"collection": "photos", "image_size": 97}),
        (Digits, {"image_size": 12}),
        (CIFAR10, {"image_size": 64}),
        (DownsampledImageNet, {"image_size": 16}),
        (Galaxies, {"image_size": 48}),
        (ImageFolder, {"root": "x", "image_size": 0}),
        (ImageFolder, {"root": "x", "validation_fraction": 0.0}),
        (ImageFolder, {"root": "x", "test_fraction": 0.96}),
        (ImageFolder, {}),
        (Digits, {"num_channels": 2}),
        (Digits, {"batch_size": 0}),
        (CIFAR10, {"num_converters": 0}),
        (Augmentation, {"shift": -0.1}),
        (Augmentation, {"shift": 0.6}),
    ],
)
def test_wrong_arguments_are_one_line(make, options):
    with pytest.raises(InputError, match=r"(data|augment)\."):
        make(**options)


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


def pictures(folder, *arguments, channels=3, **options):
    flow = SimpleNamespace(image_shape=(channels, 8, 8))
    return Pictures(folder, folder / "a data set of the user's own.ckpt", flow, *arguments, **options)


def read(found, batch_size=2):
    """Names, and images by them."""
    return {
        path.name: image
        for paths, images in found.batches(batch_size)
        for path, image in zip(paths, images, strict=True)
    }


def test_pictures_are_converted_and_one_bad_file_costs_that_file(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    save(tmp_path / "b.png")
    save(tmp_path / "deep" / "a.PNG", "L", size=(30, 20))
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:120])
    (tmp_path / "._b.png").touch()
    found = pictures(tmp_path)
    images = read(found)
    assert set(images) == {"b.png", "a.PNG"} and images["a.PNG"].shape == (3, 8, 8)
    assert np.array_equal(images["b.png"].permute(1, 2, 0).numpy(), np.array(Image.open(tmp_path / "b.png")))
    found.tell()
    said = capsys.readouterr().out
    assert "cropped or scaled: 1 of 3 pictures" in said and "grey repeated as colour: 1 of 3" in said
    assert "._b.png (hidden)" in said and re.search(r"left out: .*cut\.png \(Truncated", said)


def test_as_it_is_refuses_what_would_be_changed(tmp_path):
    save(tmp_path / "fits.png")
    save(tmp_path / "large.png", size=(9, 8))
    save(tmp_path / "grey.png", "L")
    found = pictures(tmp_path, as_is=True)
    assert set(read(found)) == {"fits.png"}
    assert [reason.partition("refuses: ")[2] for reason in found.left_out.values()] == [
        "grey repeated as colour",
        "cropped or scaled",
    ]


def test_pictures_are_converted_as_the_runs_data_set_does(tmp_path, monkeypatch):
    Image.fromarray(np.full((20, 20), 2048, np.uint16)).save(tmp_path / "deep.png")
    data = ImageFolder(root="not needed", num_channels=1, image_size=8, value_range=(0, 4095))
    monkeypatch.setattr(inputs, "data_of_run", lambda *arguments: data)
    assert (read(pictures(tmp_path, channels=1))["deep.png"] == 128).all()
    assert (read(pictures(tmp_path, [0, 65535], channels=1))["deep.png"] == 8).all()


def test_empty_and_missing_folders_are_named(tmp_path, capsys):
    with pytest.raises(InputError, match="no PNG, JPEG, WebP"):
        (tmp_path / "notes.txt").touch()
        pictures(tmp_path)
    assert "notes.txt (not PNG" in capsys.readouterr().out
    with pytest.raises(InputError, match="not a folder"):
        pictures(tmp_path / "none")
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="two numbers"):
        pictures(tmp_path, [3])


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


def test_the_error_of_a_score_is_that_of_independent_groups(crops):
    groups, generator = crops.test.groups, torch.Generator().manual_seed(0)
    scores = torch.randn(len(groups), generator=generator)
    for apart in (None, torch.randperm(len(groups))):
        assert Score.of(scores, apart).standard_error == pytest.approx(float(scores.std()) / len(groups) ** 0.5)
    # Images that are all alike in a group are no more evidence than one of them.
    members = groups.unique(return_inverse=True)[1]
    of_blocks = scores[: members.max() + 1]
    assert Score.of(of_blocks[members], groups).standard_error == pytest.approx(Score.of(of_blocks).standard_error)
    order = torch.randperm(len(groups), generator=generator)
    of_subset = Score.of(of_blocks[members][order], Subset(crops.test, order).groups)
    assert of_subset.standard_error == pytest.approx(Score.of(of_blocks).standard_error)
    assert of_subset.what_counts == f"{len(groups)} images in {len(of_blocks)} groups, errors by group"


def test_score_has_its_standard_error():
    score = Score.of(torch.tensor([1.0, 2.0, 3.0]))
    assert score.mean == 2.0
    assert score.standard_error == pytest.approx(1 / 3**0.5)
    assert str(score) == "2.000 +- 0.577"
    assert str(Score.of(torch.tensor([1.5]))) == "1.500"


def test_the_noise_of_a_picture_does_not_depend_on_what_lies_beside_it():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    images[2] = images[0]
    numbers = numbers_of(images)
    assert numbers[0] == numbers[2] != numbers[1] and numbers.min() >= 0
    assert numbers_of(images[1:2]) == numbers[1]
