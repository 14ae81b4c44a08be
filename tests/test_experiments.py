"""Every shipped experiment: it runs, and it says what it reproduces and where it differs."""

import pytest
from omegaconf import OmegaConf
from support.configs import CONF, check_train, compose, options
from support.sources import cifar_files, expect_small_releases, galaxy_tree, oord_archives, random_images, write_files

from flows.cli.command_line import check_command_line
from flows.training.run import Run

EXPERIMENTS = options("experiment")
TABLES = [name for name in EXPERIMENTS if name.startswith("table")]
LAPTOP = [name for name in EXPERIMENTS if name.startswith("laptop")]

SMALL = [
    "trainer=cpu",
    "model.num_steps=1",
    "model.hidden_channels=8",
    "budget=null",
    "++trainer.limit_val_batches=1",
    "trainer.check_val_every_n_epoch=1",
    "trainer.max_epochs=1",
    "data.batch_size=2",
    "data.eval_batch_size=2",
    "data.images_per_epoch=2",
    "data.num_initialization_images=4",
    "callbacks.samples=null",
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Small releases in the true formats, and the overrides that lead to them."""
    folder = tmp_path_factory.mktemp("sources")
    write_files(folder / "cifar10" / "cifar-10-batches-bin", cifar_files("binary")[0])
    galaxy_tree(folder / "galaxy", {"training": 4, "validation": 2, "test": 2})
    for size in (32, 64):
        oord_archives(folder / f"imagenet{size}", random_images(23, size), random_images(5, size, seed=1))
    found = {path.name: [f"data.source={path}"] for path in list(folder.iterdir())}
    prepared = f"data.prepared_dir={folder / 'prepared'}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        expect_small_releases(monkeypatch)
        yield {name: [*overrides, prepared, "data.num_converters=1"] for name, overrides in found.items()}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_one_batch(experiment, sources, tmp_path):
    """With one step a level and a narrow network; its data, recipe and everything else as shipped."""
    data_set = experiment.split("/")[-1].split("_")[0]
    config = compose(f"experiment={experiment}", f"run_dir={tmp_path}", *SMALL, *sources.get(data_set, []))
    run = Run.of(OmegaConf.create(config), tmp_path, [])
    run.fit(None)
    assert run.trainer.global_step == 1
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("experiment", [*TABLES, *LAPTOP])
def test_the_header_says_what_the_paper_found(experiment):
    header = [line for line in (CONF / f"experiment/{experiment}.yaml").read_text().splitlines() if line[0] == "#"]
    assert f"Table {experiment.removeprefix('laptop/')[5]}" in header[1]
    assert "paper" in " ".join(header)


@pytest.mark.parametrize(
    ("experiments", "steps", "beta2", "warmup", "epochs"),
    [
        ("table2/galaxy", 20, 1 - 1 / 20, 195, 6000),
        ("table3/cifar10", 196, 1 - 1 / 196, 1953, 4000),
        ("table3/imagenet32", 196, 1 - 1 / 196, 1953, 4000),
        ("table3/imagenet64", 98, 1 - 1 / 98, 977, 4000),
        ("table4", 196, 1 - 1 / 196, 1953, 4000),
        ("table6", 196, 1 - 1 / 196, 1953, 3500),
    ],
)
def test_a_row_trains_as_the_papers_code_does(experiments, steps, beta2, warmup, epochs):
    """Steps per epoch, decay of the second moment, warm-up and length: what the code computes from its data."""
    for name in [name for name in TABLES if name.startswith(experiments)]:
        config = compose(f"experiment={name}", "run_dir=run")
        assert config["data"]["images_per_epoch"] == steps * config["data"]["batch_size"]
        assert config["optimizer"]["betas"] == [0.9, pytest.approx(beta2, abs=1e-6)]
        assert config["schedule"]["warmup_steps"] == warmup
        assert config["trainer"]["max_epochs"] == epochs
        assert config["data"]["num_initialization_images"] == (64 if "imagenet64" in name else 256)


def test_a_whole_table_is_one_sweep():
    sweep = ["-m", "experiment=glob(table4/cifar10_*)", "seed=1,2,3"]
    rows = ",".join(f"table4/cifar10_{mixing}_d{steps}" for mixing in ("conv1x1", "emerging") for steps in (4, 8))
    assert check_command_line(CONF, "train", sweep) == ["-m", f"experiment={rows}", "seed=1,2,3"]


def test_a_glob_stays_in_its_folder():
    _, options = check_command_line(CONF, "train", ["-m", "experiment=glob(*)"])
    assert "smoke" in options and "/" not in options


def test_the_recipe_chooses_how_a_score_is_selected():
    paper = compose("experiment=table4/cifar10_conv1x1_d8")
    holdout = compose("experiment=table4/cifar10_conv1x1_d8", "recipe=holdout")
    assert paper["data"]["splits"] == "paper"
    assert holdout["data"]["splits"] == "holdout"
    assert paper["callbacks"]["averaging"] is None
    assert holdout["callbacks"]["averaging"]["decay"] == 0.999
    assert paper["model"] == holdout["model"]
    assert paper["trainer"]["max_epochs"] == holdout["trainer"]["max_epochs"] == 4000


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_experiment_takes_every_recipe_and_another_optimizer(recipe):
    check_train("-m", f"experiment={','.join(EXPERIMENTS)}", f"recipe={recipe}", "optimizer=adamw")


@pytest.mark.parametrize("table", ["table2", "table4", "table6"])
def test_the_laptop_editions_differ_within_a_table_in_what_is_compared_only(table):
    first, *others = [compose(f"experiment={name}", "run_dir=run") for name in LAPTOP if table in name]
    for other in others:
        assert {key for key in other if other[key] != first[key]} <= {"mixing", "model", "budget"}
