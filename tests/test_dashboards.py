"""What the loggers are told, and that none of them stops or stalls a training."""

import csv
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
from unittest.mock import patch

import numpy as np
import pytest
import pytorch_lightning as pl
import wandb
import yaml
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from support.configs import compose
from support.forks import fork, output, wait
from support.programs import ROOT, TINY, execute, run
from support.short_runs import SHORT, at_step, logged_steps, send
from support.small_training import fit
from support.wandb_server import WandbServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk.launch.sweeps.utils import create_sweep_command

from flows.training.callbacks import InversionMonitor, LatentMonitor, PeakMemory, SamplePictures, Throughput
from flows.training.loggers import ResumableCSVLogger, WandbLogger

FIGURES = {
    "train/bits_per_dim",
    "train/gradient_norm",
    "train/images_per_second",
    "lr-Adamax",
    "val/bits_per_dim",
    "val/round_trip_error",
    "val/inverse_gain",
    "val/samples_not_finite",
    "val/values_outside",
    "val/largest_value",
    "val/mixing_gain",
    "val/round_trip_error_unusual",
    "memory/process_gib",
    "latents/mean_level_1",
    "latents/std_level_1",
}
"""What is logged of a model with one level on a CPU, whose weights are not averaged."""

ONLINE = ["logger=wandb", "logger.mode=online", "logger.init_timeout=600", "logger.finish_timeout=600"]
"""Options of a run whose server is there, however long a busy machine takes to answer."""


@pytest.fixture(autouse=True)
def _client(tmp_path):
    """The W&B client of this process reads its environment anew, and leaves nothing in the user's folders."""
    own = {f"WANDB_{name}_DIR": str(tmp_path / "client") for name in ("CONFIG", "CACHE", "DATA")}
    with patch.dict(os.environ, own, NETRC=str(tmp_path / "netrc")):
        wandb.teardown()
        yield
        wandb.teardown()


def warnings_in(text):
    """What was warned of, a line each."""
    return re.findall("[Ww]arning: (.*)", text)


def log_and_finish(logger, *steps):
    for step in steps:
        logger.log_metrics({"train/bits_per_dim": 1.0}, step)
    logger.finalize("finished")


def synced(cwd, *arguments):
    """A server that was sent what ``wandb sync`` finds."""
    wandb.teardown()  # of a run that has finished, this process's client may still be writing the end
    with WandbServer() as server:
        execute(sys.executable, "-m", "wandb", "sync", *arguments, cwd=cwd, env=server.environment)
    return server


def test_every_logger_gets_the_same_figures_and_pictures(tmp_path):
    board = TensorBoardLogger(tmp_path, "tensorboard", version=0)
    logger = WandbLogger(str(tmp_path), id="first")
    samples = SamplePictures(str(tmp_path / "samples"), temperatures=[0.5, 1.0], num_columns=3)
    monitors = [Throughput(), PeakMemory(), InversionMonitor(), LatentMonitor(), LearningRateMonitor()]
    fit(tmp_path, [*monitors, samples], logger=[ResumableCSVLogger(tmp_path), board, logger])
    logger.finalize("finished")

    rows = csv.DictReader((tmp_path / "metrics/version_0/metrics.csv").open())
    assert {name for row in rows for name, value in row.items() if value} - {"step", "epoch"} == FIGURES

    tags = EventAccumulator(board.log_dir).Reload().Tags()
    assert set(tags["scalars"]) - {"epoch", "hp_metric"} == FIGURES
    assert set(tags["images"]) == {"samples/temperature 0.5", "samples/temperature 1"}

    server = synced(tmp_path, *tmp_path.glob("wandb/offline-run-*"))
    sent = server.runs["first"]["history"].values()
    names = {name for row in sent for name in row if not name.startswith("_")}
    assert names - {"epoch", "trainer/global_step"} == FIGURES | {"samples"}
    pictures = next(row["samples"] for row in sent if "samples" in row)
    assert pictures["captions"] == ["temperature 0.5", "temperature 1"]
    assert all(server.files[f"first/{name}"].startswith(b"\x89PNG") for name in pictures["filenames"])


def test_an_offline_run_and_its_continuation_are_sent_as_one_run_with_its_weights(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/best.ckpt").write_bytes(b"weights")
    for steps in ([0, 1], [3]):
        logger = WandbLogger(str(tmp_path / "run"), id="first", name="a", group="b", tags=["c"], job_type="d")
        logger.log_hyperparams({"mixing": {"kernel_size": 3}})
        log_and_finish(logger, *steps)
    server = synced(tmp_path, *sorted((tmp_path / "run/wandb").glob("offline-run-*")))
    (run,) = server.runs.values()
    assert [(row["_step"], row["trainer/global_step"]) for row in run["history"].values()] == [(0, 0), (1, 1), (2, 3)]
    assert (run["displayName"], run["groupName"], run["tags"], run["jobType"]) == ("a", "b", ["c"], "d")
    assert run["config"]["mixing"]["value"] == {"kernel_size": 3}
    assert sorted(alias["alias"] for alias in server.artifacts["checkpoint-first"]["aliases"]) == ["best", "latest"]
    assert server.files["checkpoint-first/best.ckpt"] == b"weights"


class Overflow(pl.Callback):
    """Makes the model useless before it is validated."""

    def on_validation_start(self, trainer, pl_module):
        for _, step, _ in pl_module.flow.steps():
            step.actnorm.log_scale.data.fill_(80.0)


def test_latents_that_overflow_when_a_model_is_validated_do_not_end_the_training(tmp_path):
    logger = WandbLogger(str(tmp_path))
    loggers = [TensorBoardLogger(tmp_path, "tensorboard", version=0), logger]
    trainer, _ = fit(tmp_path, [Overflow(), InversionMonitor(), LatentMonitor()], max_epochs=1, logger=loggers)
    logger.finalize("finished")
    assert np.isnan(float(trainer.callback_metrics["val/bits_per_dim"]))


@pytest.mark.parametrize("trouble", ["no key", "a malformed key", "a key that is refused", "no network"])
def test_a_start_that_fails_leaves_an_offline_run_and_one_warning(trouble, tmp_path, monkeypatch, capsys):
    with WandbServer(code=401) as server:
        address = "http://127.0.0.1:9" if trouble == "no network" else server.url
        monkeypatch.setenv("WANDB_BASE_URL", address)
        if trouble != "no key":
            monkeypatch.setenv("WANDB_API_KEY", "short" if trouble == "a malformed key" else 40 * "k")
        logger = WandbLogger(str(tmp_path), mode="online", id="first", init_timeout=2)
        log_and_finish(logger, 0)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 0
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning.startswith("Weights & Biases failed (")
    assert warning.endswith(f"with: wandb sync {folder}")
    assert logger.whereabouts == f"wandb sync {folder}"


def test_a_client_whose_process_dies_costs_one_warning(tmp_path, capsys):
    logger = WandbLogger(str(tmp_path), id="first")
    logger.log_metrics({"train/bits_per_dim": 0.0}, 0)
    own = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
    for pid in map(int, subprocess.run(own, check=True, capture_output=True, text=True).stdout.split()):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until then its socket takes what is sent
    log_and_finish(logger, 1, 2)
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning.startswith("Weights & Biases failed (")
    assert warning.endswith(f"with: {logger.whereabouts}")


def test_where_nothing_can_be_written_the_training_goes_on_without_it(tmp_path, capsys):
    (tmp_path / "file").touch()
    log_and_finish(WandbLogger(str(tmp_path / "file/run")), 0, 1)
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning.startswith("Weights & Biases failed ([Errno 20] Not a directory")


@pytest.mark.slow
def test_an_interrupted_online_run_is_continued_without_a_gap_and_arrives_as_a_whole(tmp_path, monkeypatch):
    def steps():
        return [row["trainer/global_step"] for row in online_run["history"].values() if "train/bits_per_dim" in row]

    program = [*SHORT, *ONLINE, "trainer.log_every_n_steps=1", "logger.tags=[mine]", "run_dir=run", "resume=auto"]
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert wait(fork(program, tmp_path, at_step(8, send(signal.SIGUSR1)))) == 5, output(tmp_path)
        ((run_id, online_run),) = server.runs.items()
        assert (online_run["exitcode"], online_run["preempting"]) == (5, True)
        assert steps() == list(range(9))
        assert wait(fork([*program, "trainer.max_epochs=2"], tmp_path)) == 0, output(tmp_path)
    assert not warnings_in(output(tmp_path))
    assert f"Weights & Biases: {server.url}" in output(tmp_path)
    assert list(server.runs) == [run_id]
    assert (online_run["complete"], online_run["exitcode"]) == (True, 0)
    assert steps() == logged_steps(tmp_path / "run") == list(range(12))
    assert sum("test/bits_per_dim" in row for row in online_run["history"].values()) == 1
    assert (online_run["displayName"], online_run["tags"], online_run["groupName"]) == ("run", ["mine"], "smoke")
    assert online_run["config"]["logger"]["value"]["mixing"] == "emerging"
    assert server.artifacts[f"checkpoint-{run_id}"]["committed"]
    sent = server.files[f"checkpoint-{run_id}/best.ckpt"]
    assert sent == (tmp_path / "run/checkpoints/best.ckpt").read_bytes()


@pytest.mark.slow
def test_a_server_that_dies_costs_one_warning_and_no_row(tmp_path):
    server = WandbServer()
    server.on_files = lambda: threading.Thread(target=server.stop).start()
    online = [*ONLINE, "logger.finish_timeout=3", "run_dir=run"]
    done = run("train.py", *TINY, *online, cwd=tmp_path, env=server.environment | {"WANDB_HTTP_TIMEOUT": "3"})
    warned = warnings_in(done.stderr)
    assert len(warned) == 1, done.stderr
    arguments = shlex.split(warned[0].rpartition("with: wandb sync ")[2])
    rows = list(csv.DictReader((tmp_path / "run/metrics/version_0/metrics.csv").open()))
    (sent,) = synced(tmp_path, *arguments).runs.values()
    for name in ("train/bits_per_dim", "val/bits_per_dim", "test/bits_per_dim"):
        assert sum(name in row for row in sent["history"].values()) == sum(bool(row[name]) for row in rows) > 0


def test_a_job_of_a_wandb_sweep_goes_on_in_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "job")
    sweep = yaml.safe_load((ROOT / "sweeps/wandb.yaml").read_text())
    *given, parameters = create_sweep_command(sweep["command"])[3:]
    assert parameters == "${args_no_hyphens}"
    config = compose(*given, *(f"{name}={parameter['values'][0]}" for name, parameter in sweep["parameters"].items()))
    logger = config["logger"]["wandb"]
    assert (config["run_dir"], config["resume"], logger["id"]) == ("runs/sweep-sweep/job", "auto", "job")
    assert (logger["mode"], logger["tags"][1]) == ("online", "conv1x1")


def test_a_disk_that_fills_up_within_a_row_costs_no_row_and_no_column(tmp_path, capsys):
    logger, path = ResumableCSVLogger(tmp_path), tmp_path / "metrics/version_0/metrics.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step, (figures, room) in enumerate(
        [("a", 99), ("a", 5), ("a", 5), ("a", 99), ("ab", 0), ("ab", 99), ("ab", 99)]
    ):
        size = path.stat().st_size if path.exists() else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
        try:
            logger.log_metrics(dict.fromkeys(figures, step + 0.25), step)
            logger.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert room == 99 or path.stat().st_size == size
    rows = list(csv.DictReader(path.open()))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        (str(step), f"{step}.25", f"{step}.25" if step > 3 else "") for step in range(7)
    ]
    assert capsys.readouterr().err.count("metrics are not written to") == 2


def test_a_resumed_training_replaces_the_rows_of_the_steps_that_it_does_again(tmp_path):
    for training, steps in (("first", range(5)), ("second", range(3, 6))):
        logger = ResumableCSVLogger(tmp_path)
        for step in steps:
            for name in ("both", training):
                logger.log_metrics({name: step + 0.25}, step)
                logger.save()
    rows = list(csv.DictReader((tmp_path / "metrics/version_0/metrics.csv").open()))
    logged = [(int(row["step"]), name) for row in rows for name in row if name != "step" and row[name]]
    assert logged == [(step, name) for step in range(6) for name in ("both", "first" if step < 3 else "second")]


def test_a_row_that_was_cut_off_is_not_taken_for_an_earlier_step(tmp_path):
    path = tmp_path / "metrics/version_0/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a,step\r\n0.25,0\r\n11.25,1")  # of step 11, say
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"a": 10.25}, 10)
    logger.save()
    assert [(row["step"], row["a"]) for row in csv.DictReader(path.open())] == [("0", "0.25"), ("10", "10.25")]
