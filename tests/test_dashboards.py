"""What the loggers are told, and that none of them stops or stalls a training."""

import csv
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support.forks import fork, output, wait
from support.programs import ROOT, TINY, execute, run
from support.short_runs import SHORT, at_step, send
from support.small_training import StripesModule, flow
from support.wandb_server import WandbServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import Adamax

from flows.training.callbacks import InversionMonitor, LatentMonitor, PeakMemory, SamplePictures, Throughput
from flows.training.loggers import ResumableCSVLogger, WandbLogger
from flows.training.module import FlowModule
from flows.training.schedules import WarmUp

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
def _client(tmp_path, monkeypatch):
    """The W&B client of this process reads its environment anew, and leaves nothing in the user's folders."""
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "client"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that they are put back afterwards
        monkeypatch.delenv(name)
    wandb.teardown()
    yield
    wandb.teardown()


def warnings_in(text):
    """What was warned of, a line each."""
    return re.findall("[Ww]arning: (.*)", text)


def wandb_program(*arguments, environment, cwd):
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    return execute(sys.executable, "-m", "wandb", *arguments, cwd=cwd, env=environment | {"PATH": path})


def synced(cwd, *arguments):
    """A server that was sent what ``wandb sync`` finds."""
    wandb.teardown()  # of a run that has finished, this process's client may still be writing the end
    with WandbServer() as server:
        wandb_program("sync", *arguments, environment=server.environment, cwd=cwd)
    return server


def test_every_logger_gets_the_same_figures(tmp_path):
    wandb_run = partial(WandbLogger, str(tmp_path / "run"), id="first", name="a", group="b", tags=["c"], job_type="d")
    loggers = [CSVLogger(tmp_path, "metrics"), TensorBoardLogger(tmp_path, "tensorboard", version=0), wandb_run()]
    callbacks = [
        Throughput(),
        PeakMemory(),
        InversionMonitor(),
        LatentMonitor(),
        LearningRateMonitor(),
        SamplePictures(str(tmp_path / "samples"), temperatures=[0.5, 1.0], num_columns=3),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    loggers[2].log_hyperparams({"mixing": {"kernel_size": 3}})
    trainer.fit(FlowModule(flow(), Adamax, WarmUp), StripesModule())
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/checkpoints/best.ckpt").write_bytes(b"weights")
    for logger in loggers:
        logger.finalize("finished")

    rows = list(csv.DictReader((tmp_path / "metrics/version_0/metrics.csv").open()))
    figures = {name for row in rows for name, value in row.items() if value} - {"step", "epoch"}
    assert figures == FIGURES

    tags = EventAccumulator(str(tmp_path / "tensorboard/version_0")).Reload().Tags()
    assert set(tags["scalars"]) - {"epoch", "hp_metric"} == figures
    assert set(tags["images"]) == {"samples/temperature 0.5", "samples/temperature 1"}

    resumed = wandb_run()
    resumed.log_metrics({"train/bits_per_dim": 1.0}, 3)
    resumed.finalize("finished")
    server = synced(tmp_path, *sorted((tmp_path / "run/wandb").glob("offline-run-*")))
    (run,) = server.runs.values()
    *logged, last = run["history"].values()
    names = {name for row in logged for name in row if not name.startswith("_")}
    assert names - {"epoch", "trainer/global_step"} == figures | {"samples"}
    samples = next(row["samples"] for row in logged if "samples" in row)
    assert samples["captions"] == ["temperature 0.5", "temperature 1"]
    assert all(server.files[f"first/{name}"].startswith(b"\x89PNG") for name in samples["filenames"])
    assert (run["displayName"], run["groupName"], run["tags"], run["jobType"]) == ("a", "b", ["c"], "d")
    assert run["config"]["mixing"]["value"] == {"kernel_size": 3}
    assert sorted(alias["alias"] for alias in server.artifacts["checkpoint-first"]["aliases"]) == ["best", "latest"]
    assert server.files["checkpoint-first/best.ckpt"] == b"weights"
    assert (last["_step"], last["trainer/global_step"]) == (len(logged), 3)


class Overflow(pl.Callback):
    """Makes the model useless before it is validated."""

    def on_validation_start(self, trainer, pl_module):
        for _, step, _ in pl_module.flow.steps():
            step.actnorm.log_scale.data.fill_(80.0)


def test_latents_that_overflow_when_a_model_is_validated_do_not_end_the_training(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Overflow(), InversionMonitor(), LatentMonitor()],
        logger=[TensorBoardLogger(tmp_path, "tensorboard", version=0), WandbLogger(str(tmp_path))],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(FlowModule(flow(), Adamax, WarmUp), StripesModule())
    trainer.loggers[1].finalize("finished")
    assert np.isnan(float(trainer.callback_metrics["val/bits_per_dim"]))


@pytest.mark.parametrize("trouble", ["no key", "a malformed key", "a key that is refused", "no network"])
def test_a_start_that_fails_leaves_an_offline_run_and_one_warning(trouble, tmp_path, monkeypatch, capsys):
    with WandbServer(code=401) as server:
        address = "http://127.0.0.1:9" if trouble == "no network" else server.url
        monkeypatch.setenv("WANDB_BASE_URL", address)
        if trouble != "no key":
            monkeypatch.setenv("WANDB_API_KEY", "short" if trouble == "a malformed key" else 40 * "k")
        logger = WandbLogger(str(tmp_path), mode="online", id="first", init_timeout=2)
        logger.log_metrics({"train/bits_per_dim": 1.0}, 0)
        logger.finalize("finished")
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
    for step in range(1, 3):
        logger.log_metrics({"train/bits_per_dim": 1.0}, step)
    logger.finalize("finished")
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning.startswith("Weights & Biases failed (")
    assert warning.endswith(f"with: {logger.whereabouts}")


def test_where_nothing_can_be_written_the_training_goes_on_without_it(tmp_path, capsys):
    (tmp_path / "file").touch()
    logger = WandbLogger(str(tmp_path / "file/run"))
    for step in range(2):
        logger.log_metrics({"train/bits_per_dim": 1.0}, step)
    logger.finalize("finished")
    (warning,) = warnings_in(capsys.readouterr().err)
    assert warning.startswith("Weights & Biases failed ([Errno 20] Not a directory")


@pytest.mark.slow
def test_an_interrupted_run_is_continued_without_a_gap(tmp_path, monkeypatch):
    def steps(rows):
        return [int(row["trainer/global_step"]) for row in rows if "train/bits_per_dim" in row]

    wandb_run = [*SHORT, "trainer.log_every_n_steps=1", *ONLINE, "run_dir=run"]
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert wait(fork([*wandb_run, "resume=auto"], tmp_path, at_step(8, send(signal.SIGUSR1)))) == 5
        (online_run,) = server.runs.values()
        assert (online_run["exitcode"], online_run["preempting"]) == (5, True)
        assert steps(online_run["history"].values()) == list(range(9))
        assert wait(fork([*wandb_run, "resume=auto", "trainer.max_epochs=2"], tmp_path)) == 0, output(tmp_path)
        assert list(server.runs.values()) == [online_run]
        assert online_run["exitcode"] == 0
        assert steps(online_run["history"].values()) == list(range(12))
    rows = list(csv.DictReader((tmp_path / "run/metrics/version_0/metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["train/bits_per_dim"]] == list(range(12))


@pytest.mark.slow
def test_an_online_run_arrives_as_a_whole_and_is_continued(tmp_path):
    with WandbServer() as server:
        online = [*ONLINE, "logger.tags=[mine]", "run_dir=runs/first"]
        done = run("train.py", *TINY, *online, cwd=tmp_path, env=server.environment)
        assert not warnings_in(done.stderr), done.stderr
        assert f"Weights & Biases: {server.url}" in done.stdout
        ((run_id, online_run),) = server.runs.items()
        assert (online_run["displayName"], online_run["tags"], online_run["jobType"]) == ("first", ["mine"], "train")
        assert online_run["groupName"] == "smoke"
        assert online_run["config"]["model"]["value"]["hidden_channels"] == 8
        assert online_run["config"]["logger"]["value"]["mixing"] == "emerging"
        assert (online_run["complete"], online_run["exitcode"]) == (True, 0)
        rows = online_run["history"]
        pictures = next(row["samples"] for row in rows.values() if "samples" in row)
        assert pictures["captions"][:2] == ["temperature 0.5", "temperature 0.7"]
        assert all(server.files[f"{run_id}/{name}"].startswith(b"\x89PNG") for name in pictures["filenames"])
        assert sum("test/bits_per_dim" in row for row in rows.values()) == 1
        assert server.artifacts[f"checkpoint-{run_id}"]["committed"]
        best = tmp_path / "runs/first/checkpoints/best.ckpt"
        assert server.files[f"checkpoint-{run_id}/best.ckpt"] == best.read_bytes()

        num_rows = len(rows)
        run("train.py", "resume=runs/first", "trainer.max_epochs=3", cwd=tmp_path, env=server.environment)
        assert list(server.runs) == [run_id]
        assert len(rows) > num_rows
        assert [row["_step"] for row in rows.values()] == list(range(len(rows)))
        steps = [row["trainer/global_step"] for row in rows.values()]
        assert steps[num_rows:][0] == 4


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


@pytest.mark.slow
def test_an_agent_trains_what_it_is_told_to(tmp_path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    tiny = {"experiment": "smoke", "trainer": "cpu", "trainer.max_epochs": 1, "logger.init_timeout": 600}
    jobs = [tiny | {"mixing": mixing, "seed": 1} for mixing in ("conv1x1", "periodic")]
    with WandbServer(jobs=jobs) as server:
        wandb_program("sweep", ROOT / "sweeps/wandb.yaml", environment=server.environment, cwd=tmp_path)
        (name,) = server.sweeps
        wandb_program("agent", f"someone/emerging-flows/{name}", environment=server.environment, cwd=tmp_path)
        assert [run["sweep"] for run in server.runs.values()] == [name, name]
        assert len(list(tmp_path.glob("runs/sweep-*/*/results.json"))) == 2
        layers = [run["tags"][1] for run in server.runs.values()]
        assert layers == ["conv1x1", "periodic"]
        assert all(run["exitcode"] == 0 for run in server.runs.values())


def test_a_file_that_cannot_be_written_costs_one_warning_and_no_row(tmp_path, capsys):
    logger = ResumableCSVLogger(tmp_path)
    for step in range(5):
        if step == 1:
            shutil.rmtree(tmp_path / "metrics")
            (tmp_path / "metrics").touch()  # no folder can be made there
        if step == 3:
            (tmp_path / "metrics").unlink()
        logger.log_metrics({"train/bits_per_dim": float(step)}, step)
        logger.save()
    assert capsys.readouterr().err.count("metrics are not written to") == 1
    rows = csv.DictReader((tmp_path / "metrics/version_0/metrics.csv").open())
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]  # the first went with the folder


def test_a_disk_that_fills_up_within_a_row_costs_no_row_and_no_column(tmp_path, capsys):
    logger, path = ResumableCSVLogger(tmp_path), tmp_path / "metrics/version_0/metrics.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step, (figures, room) in enumerate([("a", 99), ("a", 5), ("a", 99), ("ab", 0), ("ab", 99), ("ab", 99)]):
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
        (str(step), f"{step}.25", f"{step}.25" if step > 2 else "") for step in range(6)
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
