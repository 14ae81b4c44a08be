"""train.py, sample.py and evaluate.py as a user runs them, from the first training to the last mistake."""

import csv
import json
import os
import platform
import re
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig
from PIL import Image
from support.configs import NEEDED, compose
from support.forks import TASKS, fork, output, refusal, run_forked, wait
from support.programs import ROOT, TINY, execute, run

from flows import NonFiniteError
from flows.cli import startup
from flows.models.base import DensityModel
from flows.programs.sample import sample
from flows.runs import layout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a user folder")
    done = run("train.py", *TINY, "run_dir=runs/first", cwd=folder)
    return folder, done


def test_training_leaves_all_that_it_promises(trained):
    folder, done = trained
    for words in (
        "test bits/dim, raw weights",
        "averaged weights",
        "PNG",
        "lossless WebP",
        "parameters",
        "device-hours",
    ):
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
    assert {
        "cost/device_hours",
        "lr-Adamax",
        "train/bits_per_dim",
        "val/samples_not_finite",
        "val/mixing_gain",
    } <= logged
    assert {f"{split}/bits_per_dim{kind}" for split in ("val", "test") for kind in ("", "_averaged")} <= logged
    assert "${" not in (run_dir / "config.yaml").read_text()
    results = json.loads((run_dir / layout.RESULTS).read_text())
    numbers = ("seconds", "device_hours", "images_per_second", "peak_memory_bytes", "flops_per_image", "num_devices")
    assert all(results[name] > 0 for name in numbers) and results["device"]


def test_evaluation_repeats_the_training_s_score_whatever_the_batch_size(trained):
    folder, _ = trained
    expected = json.loads((folder / "runs/first/results.json").read_text())["test/bits_per_dim"]
    said = run_forked("evaluate.py", "checkpoint=runs/first", "batch_size=100", "output=all.csv", cwd=folder)
    assert f"{expected:.3f} +- " in said
    scores = [float(row["bits_per_dim"]) for row in csv.DictReader((folder / "all.csv").open())]
    assert np.mean(scores) == pytest.approx(expected, abs=1e-4)


def test_an_evaluation_leaves_a_record_that_says_what_it_may_be_compared_with(trained):
    folder, _ = trained
    said = run_forked("evaluate.py", "checkpoint=runs/first", "num_samples=2", "weights=averaged", cwd=folder)
    assert "averaged weights, 2 noise draws per image" in said
    record = json.loads((folder / "runs/first/evaluations/best-averaged-K2-seed0.json").read_text())
    assert (record["num_noise_samples"], record["weights"], record["split"]) == (2, "averaged", "test")
    assert record["data"] == json.loads((folder / "runs/first/results.json").read_text())["data"]
    half = run_forked("evaluate.py", "checkpoint=runs/first", "precision=bf16", "seed=5", cwd=folder)
    assert "raw weights, precision bf16" in half and "record" not in half  # only exact scores are compared


def test_same_seed_same_picture_whatever_the_batch_size(trained):
    folder, _ = trained
    for name, option in {"a": "batch_size=5", "b": "batch_size=64", "c": "seed=1"}.items():
        run_forked("sample.py", "checkpoint=best", "num_samples=9", f"output={name}", option, cwd=folder)
    a, b, c = (np.load(folder / f"{name}.npz")["images"] for name in "abc")
    assert a.shape == (9, 3, 32, 32)
    # Convolutions of five and of nine images round differently in the last bit, and so, rarely, does a pixel.
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert np.abs(a.astype(int) - c.astype(int)).max() > 50
    assert Image.open(folder / "a.png").size == (2 + 3 * 66, 32 + 2 + 3 * 66)
    run_forked("sample.py", "checkpoint=best", "num_samples=9", "scale=3", "columns=5", "output=large", cwd=folder)
    assert Image.open(folder / "large.png").size == (2 + 5 * 98, 32 + 2 + 2 * 98)
    assert np.array_equal(np.load(folder / "large.npz")["images"], b)


def test_reconstruction_is_exact_and_interpolation_ends_at_the_images(trained):
    folder, _ = trained
    said = run_forked("sample.py", "checkpoint=runs/first", "mode=reconstruct", "output=again", cwd=folder)
    assert "0 of " in said.splitlines()[0]
    pictures = folder / "pictures"
    pictures.mkdir()
    images = np.load(folder / "again.npz")["images"][::2][:2]
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(pictures / f"{number}.png")
    between = ["mode=interpolate", "images=pictures", "output=between"]
    run_forked("sample.py", "checkpoint=runs/first", *between, cwd=folder)
    between = np.load(folder / "between.npz")["images"]
    assert np.array_equal(between[0], images[0])
    assert np.array_equal(between[-1], images[1])


def lose(monkeypatch, *indices):
    """Let these images of every batch overflow."""
    decode_values = DensityModel.decode_values

    def overflowing(self, latents):
        return decode_values(self, latents)[0], dict.fromkeys(indices, "factor_outs.0")

    monkeypatch.setattr(DensityModel, "decode_values", overflowing)


def draw(trained, output):
    """Nine samples, in batches of five and four, in this process."""
    given = [f"checkpoint={trained[0]}/runs/first", "num_samples=9", "batch_size=5", f"output={output}"]
    sample(DictConfig(compose(*given, root="sample")))


def test_samples_that_overflow_are_hatched_and_named_and_the_others_written(trained, tmp_path, monkeypatch, capsys):
    lose(monkeypatch, 3)
    draw(trained, tmp_path / "some.png")
    content = np.load(tmp_path / "some.npz")
    lost = np.isin(np.arange(9), [3, 8])
    assert np.array_equal(content["finite"], ~lost)
    assert np.array_equal(content["lost_in"], np.where(lost, "factor_outs.0", ""))
    assert np.array_equal(content["images"].any(axis=(1, 2, 3)), ~lost)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "2 of 9 images overflow" in line and "factor_outs.0" in line
    cell = np.asarray(Image.open(tmp_path / "some.png"))[32 + 2 + 66 :, 2:][:64, :64]  # the fourth's
    assert set(np.unique(cell)) == {150, 255}


def test_samples_end_with_an_error_only_if_all_overflow(trained, tmp_path, monkeypatch):
    lose(monkeypatch, *range(5))
    with pytest.raises(NonFiniteError, match="of 9 images overflow"):
        draw(trained, tmp_path / "none")
    assert not os.listdir(tmp_path)


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


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_other_loggers_need_no_account_and_no_network(tmp_path, logger):
    run_forked("train.py", *TINY, f"logger={logger}", "trainer.max_epochs=1", "run_dir=run", cwd=tmp_path)
    assert (tmp_path / "run/metrics/version_0/metrics.csv").is_file()
    pattern = {"wandb": "run/wandb/offline-run-*/run-*.wandb", "tensorboard": "run/tensorboard/**/events.*"}[logger]
    assert list(tmp_path.glob(pattern))


# -- mistakes: one line, a non-zero exit code, nothing half-written ----------------------------------------------------


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("train.py", ["model.num_levels=6"], "cannot be halved 6 times"),
        ("train.py", ["optimizer.lr=-1"], "Invalid learning rate: -1"),
        ("train.py", ["precision=double"], "precision must be"),
        ("train.py", ["seed=-1"], "seed must be"),
        ("train.py", ["data.num_workers=-1"], "data.num_workers must be at least 0"),
        ("train.py", ["trainer.max_epochs=0"], "nothing to report"),
        ("train.py", ["trainer=gpu"], "no CUDA GPU here"),
        ("train.py", ["+trainer.overfit_batches=1"], "debug=overfit"),
        ("train.py", ["estimate=true", "-m"], "for a single run: leave -m out"),
        ("train.py", ["estimate=true", "trainer.max_epochs=-1", "schedule=constant"], "needs a training with an end"),
        ("train.py", ["+trainer.enable_model_summary=true"], "would have no effect"),
        ("train.py", ["+trainer.strategy=ddp_spawn"], "trainer=ddp does that"),
        ("train.py", ["callbacks.samples.temperatures=[]"], "callbacks.samples.temperatures"),
        ("sample.py", ["checkpoint=best"], "no run there has one"),
        ("sample.py", ["temperature=inf"], "temperature must be a number"),
        ("sample.py", ["seed=99999999999999999999"], "seed must be"),
        ("sample.py", ["output=."], "output must name a file"),
        ("sample.py", ["images=pictures"], "images= belongs to"),
        ("sample.py", ["mode=interpolate", "num_samples=1"], "even num_samples"),
        ("sample.py", ["num_samples=0"], "num_samples must be at least 1"),
        ("sample.py", ["scale=1000000000"], "scale must be between 1 and 64"),
        ("sample.py", ["mode=interpolate", "columns=1"], "columns must be at least 2"),
        ("sample.py", ["mode=reconstruct", "columns=3"], "columns must be even"),
        ("sample.py", ["mode=dream"], "mode must be sample or interpolate or reconstruct"),
        ("sample.py", ["weights=best"], "weights must be 'raw' or 'averaged'"),
        ("sample.py", ["device=toaster"], "device=toaster"),
        ("evaluate.py", ["data=digits"], "1 x 8 x 8, but the model's 3 x 32 x 32"),
        ("evaluate.py", ["split=all"], "split must be"),
        ("evaluate.py", ["precision=half"], "precision must be"),
        ("evaluate.py", ["data=hubble", "images=x"], "give one of them"),
    ],
)
def test_wrong_settings_stop_before_anything_is_written(trained, program, arguments, words, tmp_path):
    folder, _ = trained
    good = [*TINY, "run_dir=run"] if program == "train.py" else [f"checkpoint={folder}/runs/first"]
    assert words in refusal(program, *good, *arguments, cwd=tmp_path)
    assert not os.listdir(tmp_path)


def test_a_run_folder_is_not_used_twice_not_even_by_a_checkpoint_from_elsewhere(trained, tmp_path):
    def contents():
        return {path: path.stat().st_mtime_ns for path in (folder / "runs/first").rglob("*") if path.is_file()}

    folder, _ = trained
    shutil.copy(folder / "runs/first/checkpoints/last.ckpt", tmp_path / "bare.ckpt")
    before = contents()
    resume = [f"resume={tmp_path}/bare.ckpt", "trainer.max_epochs=3"]
    for arguments in (TINY, resume):
        assert "holds a run already" in refusal("train.py", *arguments, "run_dir=runs/first", cwd=folder)
    assert contents() == before
    run_forked("train.py", *resume, "run_dir=runs/new", cwd=folder)
    assert yaml.safe_load((folder / "runs/new/config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_a_bad_output_path_is_refused_before_the_work(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "file").touch()
    (tmp_path / "pictures").mkdir()
    given = ["evaluate.py", f"checkpoint={folder}/runs/first", "images=pictures"]
    assert "file is not a folder" in refusal(*given, "output=file/x.csv", cwd=tmp_path, code=4)
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "good.png")
    assert "cannot write pictures: Is a directory" in refusal(*given, "output=pictures", cwd=tmp_path, code=4)


def test_a_run_whose_checkpoints_do_not_fit_on_the_disk_trains_on_and_ends_with_an_error(tmp_path):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    assert wait(fork([*TINY, "run_dir=run"], tmp_path, no_room)) == 4, output(tmp_path)
    assert "no checkpoint, the training goes on" in output(tmp_path)
    assert "error: cannot write" in output(tmp_path)
    assert not list(tmp_path.rglob("*ckpt*"))


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        *((program, {}, startup.SPINS) for program in TASKS),
        ("train.py", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("train.py", {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_decided(program, given, expected, tmp_path, monkeypatch):
    """The library that they belong to reads its settings when PyTorch is imported: another one shows them then."""
    (tmp_path / "torch.py").write_text("import os; print(os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)")
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    done = run(program, *NEEDED[Path(program).stem], cwd=tmp_path, env=given | {"PYTHONPATH": str(tmp_path)})
    assert done.stdout.strip() == str(expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_serves_again_without_a_page_fault():
    lines = [
        "import resource",
        "from flows.processes.memory import keep_freed_memory",
        "keep_freed_memory()",
        "def faults(): bytearray(10**8); return resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "first, second = faults(), faults()",
        "assert second - first < 100, second - first",
    ]
    execute(sys.executable, "-c", "\n".join(lines), cwd=ROOT)
