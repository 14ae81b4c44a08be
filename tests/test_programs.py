"""train.py, sample.py and evaluate.py as a user runs them, from the first training to the last mistake."""

import csv
import json
import math
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.forks import TASKS, fork, output, refusal, run_forked, wait
from support.programs import ROOT, TINY, execute, run

from flows import load_flow
from flows.cli import startup
from flows.runs import layout
from flows.training.checkpoint_io import AtomicCheckpointIO


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a user folder")
    done = run("train.py", *TINY, "run_dir=runs/first", cwd=folder)
    return folder, done


def test_training_leaves_all_that_it_promises(trained):
    folder, done = trained
    for words in ("test bits/dim, raw weights", "averaged weights", "PNG", "lossless WebP", "parameters", "time"):
        assert words in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    run_dir = folder / "runs" / "first"
    left = {path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()}
    samples = {f"{layout.SAMPLES}/{name}" for name in (layout.FINAL_SAMPLES, layout.picture(2), layout.picture(4))}
    shown = {f"{layout.CHECKPOINTS}/{layout.BEST}", layout.RESULTS, f"{layout.METRICS}/version_0/metrics.csv"}
    hidden = {layout.CONFIG, layout.OVERRIDES, layout.LOCK, layout.TEST_SCORES, f"{layout.CHECKPOINTS}/{layout.LAST}"}
    assert left == {Path(name) for name in shown | hidden | samples}
    for name in (*shown, f"{layout.SAMPLES}/{layout.FINAL_SAMPLES}"):
        assert str(run_dir / name) in done.stdout
    rows = list(csv.DictReader((run_dir / "metrics/version_0/metrics.csv").open()))
    logged = {name for row in rows for name, value in row.items() if value}
    assert {"lr-Adamax", "train/bits_per_dim", "val/samples_not_finite", "val/mixing_gain"} <= logged
    assert {f"{split}/bits_per_dim{kind}" for split in ("val", "test") for kind in ("", "_averaged")} <= logged
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["model"]["hidden_channels"] == 8
    assert "${" not in (run_dir / "config.yaml").read_text()


def test_evaluation_repeats_the_training_s_score_whatever_the_batch_size(trained):
    folder, _ = trained
    expected = json.loads((folder / "runs/first/results.json").read_text())["test/bits_per_dim"]
    done = run("evaluate.py", "checkpoint=runs/first", "batch_size=100", "output=all.csv", cwd=folder)
    assert f"{expected:.3f} +- " in done.stdout
    scores = [float(row["bits_per_dim"]) for row in csv.DictReader((folder / "all.csv").open())]
    assert np.mean(scores) == pytest.approx(expected, abs=1e-4)


def test_an_evaluation_leaves_a_record_that_says_what_it_may_be_compared_with(trained):
    folder, _ = trained
    said = run_forked("evaluate.py", "checkpoint=runs/first", "num_samples=2", "weights=averaged", cwd=folder)
    assert "averaged weights, 2 noise draws per image" in said
    record = json.loads((folder / "runs/first/evaluations/best-averaged-K2-seed0.json").read_text())
    assert (record["num_noise_samples"], record["weights"], record["split"]) == (2, "averaged", "test")
    assert record["data"] == json.loads((folder / "runs/first/results.json").read_text())["data"]


def test_same_seed_same_picture_whatever_the_batch_size(trained):
    folder, _ = trained
    for name, options in {
        "a": ["batch_size=5"],
        "again": ["batch_size=5"],
        "b": ["batch_size=64"],
        "c": ["seed=1"],
    }.items():
        run_forked("sample.py", "checkpoint=best", "num_samples=9", f"output={name}", *options, cwd=folder)
    a, b, c = (np.load(folder / f"{name}.npz")["images"] for name in "abc")
    assert a.shape == (9, 3, 32, 32)
    assert (folder / "a.png").read_bytes() == (folder / "again.png").read_bytes()
    # Convolutions of five and of nine images round differently in the last bit, and so, rarely, does a pixel.
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert np.abs(a.astype(int) - c.astype(int)).max() > 50
    assert Image.open(folder / "a.png").size == (2 + 3 * 66, 32 + 2 + 3 * 66)
    run_forked("sample.py", "checkpoint=best", "num_samples=9", "scale=3", "columns=5", "output=large", cwd=folder)
    assert Image.open(folder / "large.png").size == (2 + 5 * 98, 32 + 2 + 2 * 98)
    assert np.array_equal(np.load(folder / "large.npz")["images"], b)


def test_reconstruction_is_exact_and_interpolation_ends_at_the_images(trained):
    folder, _ = trained
    done = run("sample.py", "checkpoint=runs/first", "mode=reconstruct", "output=again", cwd=folder)
    assert done.stdout.startswith("0 of ")
    pictures = folder / "pictures"
    pictures.mkdir()
    images = np.load(folder / "again.npz")["images"][::2][:2]
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(pictures / f"{number}.png")
    run_forked(
        "sample.py", "checkpoint=runs/first", "mode=interpolate", "images=pictures", "output=between", cwd=folder
    )
    between = np.load(folder / "between.npz")["images"]
    assert np.array_equal(between[0], images[0])
    assert np.array_equal(between[-1], images[1])


@pytest.fixture(scope="module")
def unsafe(trained):
    """The run's checkpoint with weights by which five of the first 25 samples of seed 0 overflow."""
    folder, _ = trained
    content = torch.load(folder / "runs/first/checkpoints/best.ckpt", weights_only=True)
    content["config"]["model"]["prior"]["max_log_scale"] = None
    weights = content["current_model_state"]["flow.factor_outs.0.gaussian.convolution.convolution.weight"]
    weights[1, 0, 1, 1] = 1.0  # a log standard deviation
    torch.save(content, folder / "unsafe.ckpt")
    flow = load_flow(folder / "unsafe.ckpt")
    with torch.no_grad():
        top = flow.sample_latents(25, 1.0, torch.Generator().manual_seed(0))[-1]
        kept = flow.levels[1].inverse(flow.top.inverse(top))
        largest = flow.factor_outs[0].gaussian.mean_and_log_std(kept)[1].flatten(1).amax(dim=1).sort().values
    weights[1, 0, 1, 1] = math.log(1e38) / float(largest[19:21].mean())
    torch.save(content, folder / "unsafe.ckpt")
    return folder


def test_samples_that_overflow_are_hatched_and_named_and_the_others_written(unsafe):
    done = run("sample.py", "checkpoint=unsafe.ckpt", "num_samples=25", "temperature=1", "output=some.png", cwd=unsafe)
    content = np.load(unsafe / "some.npz")
    images, finite, lost_in = (content[name] for name in ("images", "finite", "lost_in"))
    assert 0 < finite.sum() < 25
    assert (lost_in[~finite] == "factor_outs.0").all() and (lost_in[finite] == "").all()
    assert images.shape == (25, 3, 32, 32) and not images[~finite].any()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert f"{25 - finite.sum()} of 25 images overflow" in line
    assert "factor_outs.0" in line and "temperature" in line and "coupling" in line
    picture = np.asarray(Image.open(unsafe / "some.png"))
    row, column = divmod(int(np.flatnonzero(~finite)[0]), 5)
    cell = picture[32 + 2 + 66 * row :, 2 + 66 * column :][:64, :64]
    assert set(np.unique(cell)) == {150, 255}


def test_samples_end_with_an_error_only_if_all_overflow(unsafe):
    (unsafe / "none.npz").unlink(missing_ok=True)
    overflowing = ["checkpoint=unsafe.ckpt", "temperature=1000", "output=none"]
    assert "64 of 64 images overflow" in refusal("sample.py", *overflowing, cwd=unsafe, code=3)
    assert not (unsafe / "none.npz").exists()


def test_own_pictures_are_scored_one_by_one(trained, tmp_path):
    folder, _ = trained
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    Image.fromarray(noise).save(tmp_path / "pictures" / "deep" / "noise.png")
    Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8)).save(tmp_path / "pictures" / "flat.png")
    Image.fromarray(noise).resize((50, 40)).save(tmp_path / "pictures" / os.fsdecode(b"caf\xe9.webp"))
    (tmp_path / "pictures" / os.fsdecode(b"t\xe9xt.png")).write_text("not a picture")
    given = [f"checkpoint={folder}/runs/first", "images=pictures", "batch_size=2"]
    done = run("evaluate.py", *given, cwd=tmp_path)
    assert re.search(r"left out: pictures/t\\udce9xt\.png \(it is not a PNG", done.stdout)
    assert "cropped or scaled: 1 of 4 pictures" in done.stdout and "lossless WebP bits/dim" in done.stdout
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert set(rows) == {"deep/noise.png", "flat.png", r"caf\udce9.webp"}
    flat, noise = rows["flat.png"], rows["deep/noise.png"]
    for column in ("bits_per_dim", "png_bits_per_dim", "webp_bits_per_dim", "rank_in_validation"):
        assert 0 <= float(flat[column]) < float(noise[column])
    assert sorted(os.listdir(tmp_path)) == ["pictures", "scores.csv"]
    # One of them alone has the same score.
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "pictures" / "flat.png", tmp_path / "alone" / "other name.png")
    run_forked("evaluate.py", given[0], "images=alone", "as_is=true", "output=alone.csv", cwd=tmp_path)
    (row,) = csv.DictReader((tmp_path / "alone.csv").open())
    assert float(row["bits_per_dim"]) == pytest.approx(float(flat["bits_per_dim"]), abs=1e-4)


def test_any_split_of_any_data_set_of_that_shape_is_scored(trained, tmp_path):
    folder, _ = trained
    checkpoint = f"checkpoint={folder}/runs/first"
    validation = json.loads((folder / "runs/first/results.json").read_text())["val/bits_per_dim"]
    records = set((folder / "runs/first").rglob("*.json"))
    said = run_forked("evaluate.py", checkpoint, "split=val", cwd=tmp_path)
    assert "val split" in said and f"{validation:.3f} +- " in said
    assert "hubble, test split, 117 images" in run_forked("evaluate.py", checkpoint, "data=hubble", cwd=tmp_path)
    assert set((folder / "runs/first").rglob("*.json")) == records
    assert "1 x 8 x 8, but the model's 3 x 32 x 32" in refusal("evaluate.py", checkpoint, "data=digits", cwd=tmp_path)
    assert "split must be" in refusal("evaluate.py", checkpoint, "split=all", cwd=tmp_path)
    assert "give one of them" in refusal("evaluate.py", checkpoint, "data=hubble", "images=x", cwd=tmp_path)


def test_a_run_is_continued_with_its_own_settings(trained):
    folder, _ = trained
    begun = [*TINY, "mixing=periodic", "seed=7"]
    run_forked("train.py", *begun, "run_dir=runs/continued", cwd=folder)
    run_forked("train.py", "resume=runs/continued", "trainer.max_epochs=3", cwd=folder)
    results = json.loads((folder / "runs/continued/results.json").read_text())
    assert results["steps"] == 6
    rows = list(csv.DictReader((folder / "runs/continued/metrics/version_0/metrics.csv").open()))
    assert [row["step"] for row in rows if row["train/bits_per_dim"]] == ["0", "1", "2", "3", "4", "5"]
    run_forked("train.py", *begun, "run_dir=runs/whole", "trainer.max_epochs=3", cwd=folder)
    continued, whole = (
        torch.load(folder / f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("continued", "whole")
    )
    for key in ("state_dict", "current_model_state"):
        for name, value in whole[key].items():
            assert torch.equal(value, continued[key][name]), f"{key} {name}"


def test_a_sweep_leaves_a_folder_for_each_job(tmp_path):
    grid = ["-m", *TINY, "mixing=conv1x1,reverse", "trainer.max_epochs=1", "run_dir=sweep"]
    run_forked("train.py", *grid, cwd=tmp_path)
    results = sorted(tmp_path.glob("sweep/**/results.json"))
    assert len(results) == 2
    assert all("mixing=" in str(path) for path in results)


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_other_loggers_need_no_account_and_no_network(tmp_path, logger):
    run_forked("train.py", *TINY, f"logger={logger}", "trainer.max_epochs=1", "run_dir=run", cwd=tmp_path)
    assert (tmp_path / "run/metrics/version_0/metrics.csv").is_file()
    pattern = {"wandb": "run/wandb/offline-run-*/run-*.wandb", "tensorboard": "run/tensorboard/**/events.*"}[logger]
    assert list(tmp_path.glob(pattern))


# -- mistakes: one line, a non-zero exit code, nothing half-written ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mixing=emergin"], "did you mean 'emerging'"),
        (["model.num_levels=many"], "must be a valid integer"),
        (["data.batch_size=many"], "data.batch_size must be a valid integer"),
        (["+data.bath_size=3"], "did you mean 'batch_size'"),
        (["model.num_levels=6"], "cannot be halved 6 times"),
        (["mixing.kernel_size=4"], "kernel_size must be odd"),
        (["data.image_size=100"], "data.image_size must be between"),
        (["resume=runs/none"], "there is no checkpoint"),
        (["optimizer.lr=-1"], "Invalid learning rate: -1"),
        (["precision=double"], "precision must be"),
        (["seed=-1"], "seed must be"),
        (["data.num_workers=-1"], "data.num_workers must be at least 0"),
        (["trainer.max_epochs=0"], "nothing to report"),
        (["trainer=gpu"], "no CUDA GPU here"),
        (["callbacks.samples.temperatures=[]"], "callbacks.samples.temperatures"),
    ],
)
def test_wrong_settings_stop_before_any_work(arguments, words, tmp_path):
    assert words in refusal("train.py", *TINY, "run_dir=run", *arguments, cwd=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_not_used_twice(trained):
    folder, _ = trained
    before = _contents(folder / "runs/first")
    line = refusal("train.py", *TINY, "run_dir=runs/first", cwd=folder)
    assert "holds a run already" in line
    assert "resume=" in line
    assert _contents(folder / "runs/first") == before


def _contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_from_elsewhere_does_not_continue_in_another_run_s_folder(trained, tmp_path):
    folder, _ = trained
    shutil.copy(folder / "runs/first/checkpoints/last.ckpt", tmp_path / "bare.ckpt")
    before = _contents(folder / "runs/first")
    resume = [f"resume={tmp_path}/bare.ckpt", "trainer.max_epochs=3"]
    line = refusal("train.py", *resume, "run_dir=runs/first", cwd=folder)
    assert "holds a run already" in line
    assert _contents(folder / "runs/first") == before
    run_forked("train.py", *resume, "run_dir=runs/new", cwd=folder)
    assert yaml.safe_load((folder / "runs/new/config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_another_model_is_not_resumed(trained):
    folder, _ = trained
    line = refusal("train.py", "resume=runs/first", "model.num_steps=2", cwd=folder)
    assert "other settings (model.num_steps)" in line


def test_a_diverging_training_stops_with_its_step(tmp_path):
    diverging = [*TINY, "run_dir=run", "optimizer.lr=1e30", "schedule.warmup_steps=0"]
    said = run_forked("train.py", *diverging, cwd=tmp_path, code=3).splitlines()
    (line,) = [line for line in said if line.startswith("error: ")]
    assert "training stopped at step" in line and "lower optimizer.lr" in line


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("sample.py", [], "checkpoint=... must be given"),
        ("evaluate.py", ["checkpoint=none.ckpt"], "there is no checkpoint none.ckpt"),
        ("sample.py", ["checkpoint=best"], "no run there has one"),
        ("evaluate.py", ["checkpoint=cut.ckpt"], "truncated"),
        ("sample.py", ["checkpont=best"], "did you mean 'checkpoint'"),
        ("sample.py", ["checkpoint=it's"], "cannot read the override"),
    ],
)
def test_wrong_checkpoints_are_named(program, arguments, words, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04")
    assert words in refusal(program, *arguments, cwd=tmp_path)
    assert os.listdir(tmp_path) == ["cut.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["temperature=-1"], "temperature must be a number of at least 0"),
        (["temperature=inf"], "temperature must be a number"),
        (["seed=99999999999999999999"], "seed must be"),
        (["output=."], "output must name a file"),
        (["images=pictures"], "images= belongs to"),
        (["mode=interpolate", "num_samples=1"], "even num_samples"),
        (["num_samples=0"], "num_samples must be at least 1"),
        (["scale=1000000000"], "scale must be between 1 and 64"),
        (["mode=interpolate", "columns=1"], "columns must be at least 2"),
        (["mode=reconstruct", "columns=3"], "columns must be even"),
        (["mode=dream"], "mode must be sample or interpolate or reconstruct"),
        (["weights=best"], "weights must be 'raw' or 'averaged'"),
        (["device=toaster"], "device=toaster"),
    ],
)
def test_wrong_sampling_is_refused(trained, arguments, words, tmp_path):
    folder, _ = trained
    line = refusal("sample.py", f"checkpoint={folder}/runs/first", *arguments, cwd=tmp_path)
    assert words in line
    assert not os.listdir(tmp_path)


def test_a_bad_output_path_is_refused_before_the_work(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "file").touch()
    (tmp_path / "pictures").mkdir()
    given = ["evaluate.py", f"checkpoint={folder}/runs/first", "images=pictures"]
    assert "file is not a folder" in refusal(*given, "output=file/x.csv", cwd=tmp_path, code=4)
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "good.png")
    assert "cannot write pictures: Is a directory" in refusal(*given, "output=pictures", cwd=tmp_path, code=4)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """Checkpoints of the second epoch no longer fit: the run goes on without, those of the first one still load.

    What it ended with is not saved, so it ends with exit code 4.
    """

    def no_room_from_the_third_on():
        save, count = AtomicCheckpointIO.save_checkpoint, iter(range(1000))

        def limited(self, *arguments, **options):
            if next(count) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            save(self, *arguments, **options)

        AtomicCheckpointIO.save_checkpoint = limited

    assert wait(fork([*TINY, "run_dir=run"], tmp_path, no_room_from_the_third_on)) == 4, output(tmp_path)
    said = output(tmp_path)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "cannot write" in line
    assert said.count("no checkpoint, the training goes on") == 2
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(checkpoints)) == ["best.ckpt", "last.ckpt"]
    for name in ("best.ckpt", "last.ckpt"):
        assert torch.load(checkpoints / name, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        *((program, {}, startup.SPINS) for program in TASKS),
        ("train.py", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("train.py", {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_decided(program, given, expected, monkeypatch):
    """The library that they belong to reads its settings when PyTorch is imported, which some do after a check."""
    code = f"""
import os, runpy, sys
def show():
    print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
    os._exit(0)
class Finder:
    def find_spec(self, name, *arguments):
        if name == "torch":
            show()
sys.meta_path.insert(0, Finder())
try:
    runpy.run_path({str(ROOT / program)!r}, run_name="__main__")
finally:
    show()
"""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert execute(sys.executable, "-c", code, cwd=ROOT, env=given).stdout.strip() == str(expected)
