"""``prepare.py`` and the data sets' configurations, as a user meets them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from support.sources import picture, random_images, write_files

from datamodules import Augmentation, ImageDataModule
from flows.cli import schema
from flows.config.building import build, build_trusted
from flows.config.checking import check
from flows.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
DATA_SETS = sorted(path.stem for path in (ROOT / "conf" / "data").glob("[!_]*.yaml"))
AUGMENTATIONS = sorted(path.stem for path in (ROOT / "conf" / "augment").glob("*.yaml"))


def composed(root, *overrides):
    schema.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(root, list(overrides), return_hydra_config=False)
    own = OmegaConf.masked_copy(config, ["data", "augment", "seed"])
    return OmegaConf.to_container(own, resolve=True)


@pytest.mark.parametrize("root", ["train", "prepare"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_built_with_its_own_augmentation_and_with_none(root, name):
    given = ["data.root=somewhere"] if name == "images" else []
    config = composed(root, f"data={name}", *given)
    check(config)
    data = build(config["data"])
    assert isinstance(data, ImageDataModule)
    assert data.augmentation.is_identity == (name not in ("cifar10", "galaxy"))
    for augment in AUGMENTATIONS:
        data = build(composed(root, f"data={name}", f"augment={augment}", *given)["data"])
        assert data.augmentation.is_identity == (augment == "none")


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=many", "data.batch_size must be an integer, not 'many'"),
        ("data.seed=x", "data.seed must be an integer"),
        ("+data.bath_size=3", r"data.bath_size: datamodules\.\w+ takes no 'bath_size'; did you mean 'batch_size'"),
    ],
)
def test_every_data_set_refuses_a_wrong_loader_setting_in_one_line(name, override, message):
    with pytest.raises(InputError, match=message) as caught:
        check(composed("train", f"data={name}", override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cifar10", "data.splits"),
        ("imagenet32", "data.release"),
        ("photos", "data.collection"),
        ("galaxy", "augment.fill"),
    ],
)
def test_an_unknown_choice_is_refused(name, key):
    with pytest.raises(InputError, match=f"{key} must be '.*', not 'other'"):
        check(composed("train", f"data={name}", f"{key}=other"))


def test_the_papers_augmentations():
    cifar10, galaxy = (composed("train", f"data={name}")["augment"] for name in ("cifar10", "galaxy"))
    flips = ("horizontal_flip", "vertical_flip", "transpose")
    assert [cifar10[key] for key in (*flips, "shift", "fill")] == [True, False, False, 0.1, "nearest"]
    assert [galaxy[key] for key in (*flips, "shift", "fill")] == [True, True, True, 0.1, "reflect"]
    assert composed("train", "data=cifar10", "augment.shift=0.2")["data"]["augmentation"]["shift"] == 0.2


def test_a_stored_data_set_is_rebuilt_with_its_augmentation():
    config = composed("train", "data=cifar10")["data"]
    data = build_trusted(config, allowed=(ImageDataModule, Augmentation), packages=("datamodules",))
    assert data.augmentation.horizontal_flip


def run(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "prepare.py"), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def test_preparing_verifying_and_looking_at_a_folder(tmp_path):
    images = random_images(40, 16)
    write_files(tmp_path / "mine", {f"{number}.png": picture(image) for number, image in enumerate(images)})
    given = ["data=images", "data.root=mine", "data.image_size=16", "data.test_fraction=0.3", "data.split_seed=1"]
    given += ["data.validation_fraction=0.2", "augment=galaxy"]
    done = run(tmp_path, *given, "verify=true", "preview=sheet.png")
    assert done.returncode == 0, done.stderr
    assert "images-mine-16: " in done.stdout and "verified: all 40 images" in done.stdout
    assert "sheet.png" in done.stdout
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 12 * 18 + 2 and (sheet.shape[0] - 2) // 18 % 2 == 0
    assert not np.array_equal(sheet[2:18], sheet[20:36])
    array = next((tmp_path / "data" / "prepared").glob("images-mine-16-*/train.npy"))
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    broken = run(tmp_path, *given, "verify=true")
    assert broken.returncode == 2 and broken.stderr.startswith("error: ") and "has changed" in broken.stderr
    assert broken.stderr.count("\n") == 1
