"""``prepare.py`` and the data sets' configurations, as a user meets them."""

import numpy as np
import pytest
from PIL import Image
from support.configs import compose, options
from support.forks import run_forked
from support.programs import run
from support.sources import picture, random_images, write_files

from datamodules import ImageDataModule
from flows.config.building import build, check
from flows.errors import InputError

DATA_SETS = options("data")


@pytest.mark.parametrize("root", ["train", "prepare"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_built_with_its_own_augmentation_and_with_none(root, name):
    given = ["data.root=somewhere"] if name == "images" else []
    config = compose(f"data={name}", *given, root=root)
    check(config)
    data = build(config["data"])
    assert isinstance(data, ImageDataModule)
    assert data.augmentation.is_identity == (name not in ("cifar10", "galaxy"))
    other = "none" if name in ("cifar10", "galaxy") else "galaxy"
    data = build(compose(f"data={name}", f"augment={other}", *given, root=root)["data"])
    assert data.augmentation.is_identity == (other == "none")


CHOICES = {
    "cifar10": "data.splits",
    "imagenet32": "data.release",
    "photos": "data.collection",
    "galaxy": "augment.fill",
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused(name):
    key = CHOICES[name]
    with pytest.raises(InputError, match=f"{key} must be '.*', not 'other'"):
        check(compose(f"data={name}", f"{key}=other"))


def test_the_papers_augmentations():
    cifar10, galaxy = (compose(f"data={name}")["augment"] for name in ("cifar10", "galaxy"))
    flips = ("horizontal_flip", "vertical_flip", "transpose")
    assert [cifar10[key] for key in (*flips, "shift", "fill")] == [True, False, False, 0.1, "nearest"]
    assert [galaxy[key] for key in (*flips, "shift", "fill")] == [True, True, True, 0.1, "reflect"]
    assert compose("data=cifar10", "augment.shift=0.2")["data"]["augmentation"]["shift"] == 0.2


@pytest.mark.slow
def test_preparing_verifying_and_looking_at_a_folder(tmp_path):
    images = random_images(40, 16)
    write_files(tmp_path / "mine", {f"{number}.png": picture(image) for number, image in enumerate(images)})
    given = ["data=images", "data.root=mine", "data.image_size=16", "data.test_fraction=0.3", "data.split_seed=1"]
    given += ["data.validation_fraction=0.2", "augment=galaxy"]
    done = run("prepare.py", *given, "verify=true", "preview=sheet.png", cwd=tmp_path)
    assert "images-mine-16: " in done.stdout and "verified: all 40 images" in done.stdout
    assert "sheet.png" in done.stdout
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 12 * 18 + 2 and (sheet.shape[0] - 2) // 18 % 2 == 0
    assert not np.array_equal(sheet[2:18], sheet[20:36])
    array = next((tmp_path / "data" / "prepared").glob("images-mine-16-*/train.npy"))
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    *_, line = run_forked("prepare.py", *given, "verify=true", cwd=tmp_path, code=2).splitlines()
    assert line.startswith("error: ") and "has changed" in line
