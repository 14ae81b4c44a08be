"""Sweeps: what a job is called, what is missing, who gets which cores, and how everything ends up in one table."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from support.programs import ROOT, execute, run
from support.programs import environment as environment_of_tests
from support.waiting import is_alive, wait_until

from flows import InputError, StorageError
from flows.cli import entry
from flows.processes import signals
from flows.runs import claim, layout
from flows.sweeps import sweeper
from flows.sweeps.job import MAX_LENGTH, RunScore, explain_end, finished, job_name, open_output, read_score
from flows.sweeps.launcher import num_processes
from flows.sweeps.local_pool import Slot, divide_machine, environment

CONF = ROOT / "conf"
RAISED = "Traceback (most recent call last):\n  File x\n"
RESULTS = {"val/bits_per_dim": 3.5, "test/bits_per_dim": 3.25}


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_plain_name_is_kept():
    assert job_name("mixing=conv1x1,seed=1") == "mixing=conv1x1,seed=1"
    assert job_name("") == "defaults"


@pytest.mark.parametrize(
    "overrides",
    ["data.root='/it is'", "x=[${y}]", "~callbacks.averaging", "seed=é" * 60, "a=1,b=2," * 99],
)
def test_every_name_is_one_a_file_system_and_a_shell_take(overrides, tmp_path):
    name = job_name(overrides)
    assert not set(name) & set(" /\\'\"[]{}$*?~()&;|<>\n")
    assert len(name.encode()) <= MAX_LENGTH + 9
    (tmp_path / name).mkdir()
    assert job_name(overrides) == name


def test_different_overrides_never_share_a_name():
    long = "a.key.of.some.length=1," * 20
    names = [job_name(text) for text in (f"{long}seed=1", f"{long}seed=2", "r=a/b", "r=a_b", "r='a_b'", "r=a'b")]
    assert len(set(names)) == len(names)


# -- what is missing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The run folder of a finished job, moved since."""
    path = tmp_path / "job"
    (path / "checkpoints").mkdir(parents=True)
    (path / layout.CONFIG).write_text(yaml.safe_dump(config_in("/where/it/was")))
    (path / layout.RESULTS).write_text(json.dumps(RESULTS))
    (path / "checkpoints" / "last.ckpt").touch()
    return path


def config_in(run_dir, **changes):
    config = {"run_dir": run_dir, "logger": {"save_dir": run_dir}, "seed": 1, "resume": None, "data": {"root": "here"}}
    return config | changes


def test_a_finished_job_is_not_run_again_wherever_it_was_moved(folder):
    assert finished(folder, config_in) == RunScore(3.5, 3.25)
    for changes in ({"data": {"root": "there"}, "resume": "x"}, {"logger": {"mode": "online"}}):
        assert finished(folder, partial(config_in, **changes)) == RunScore(3.5, 3.25)


def test_the_folder_of_another_run_is_neither_taken_nor_touched(folder):
    with pytest.raises(InputError, match=r"other settings \(seed\): choose another run_dir"):
        finished(folder, partial(config_in, seed=2))
    (folder / layout.RESULTS).unlink()
    with pytest.raises(InputError, match="other settings"):
        finished(folder, partial(config_in, seed=2))


@pytest.mark.parametrize("results", ["", "{", "[]", '{"test/bits_per_dim": 1}'])
def test_half_written_results_are_none(folder, results):
    (folder / layout.RESULTS).write_text(results)
    assert read_score(folder) is None
    assert finished(folder, config_in) is None


def test_a_folder_without_a_checkpoint_has_nothing_to_lose(folder):
    (folder / layout.RESULTS).unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert finished(folder, partial(config_in, seed=2)) is None


def test_old_results_of_a_continued_run_do_not_pass_for_its_own(folder):
    claim.write_config(folder, config_in("x"), [])
    assert read_score(folder) is None


# -- how a process ended -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "code", "words"),
    [
        (["epoch 1\nerror: too large\n"], 2, "too large"),
        ([f"warning\n{RAISED}ValueError: one\n\nTraceback\nE: two\n"], 1, "ValueError: one"),
        ([f"{RAISED}RuntimeError: peer\n", "error: the reason\n"], 1, "the reason"),
        (["[rank0]: Traceback (most recent call last):\n[rank0]:   File x\n[rank0]: KeyError: a\n"], 1, "KeyError: a"),
        (["epoch 1\n"], -9, "killed by SIGKILL"),
        (["epoch 1\n=== killed by SIGKILL\n"], None, "killed by SIGKILL"),
        (["interrupted by SIGTERM: x\n=== ended with exit code 5\n"], 5, "interrupted by SIGTERM: x"),
        (["epoch 1\n"], 0, "ended without a score"),
        ([], 1, "ended with exit code 1"),
    ],
)  # fmt: skip
def test_the_first_that_says_why_is_believed(tmp_path, outputs, code, words):
    for rank, text in enumerate(outputs):
        name = "output.log" if rank == 0 else f"output.{rank}.log"
        with open_output(tmp_path, name) as file:
            file.write(b"error: of the attempt before\n")
        with open_output(tmp_path, name) as file:
            file.write(text.encode())
        assert "of the attempt before" in (tmp_path / name).read_text()
    assert explain_end(tmp_path, code) == words


# -- slots of a machine ------------------------------------------------------------------------------------------------


def test_cores_and_gpus_are_dealt_out_without_overlap():
    assert divide_machine(2, [0, 1, 4, 5], ["0", "1"], 1) == [Slot((0, 1), ("0",)), Slot((4, 5), ("1",))]
    assert [slot.gpus for slot in divide_machine(2, range(8), ["a", "b", "c", "d"], 2)] == [("a", "b"), ("c", "d")]


def test_more_jobs_than_there_is_share():
    assert [slot.cores for slot in divide_machine(3, [0, 1], [], 1)] == [(0, 1)] * 3
    assert [slot.gpus for slot in divide_machine(3, range(6), ["0", "1"], 1)] == [("0",), ("1",), ("0",)]
    assert divide_machine(1, [0], ["0"], 2)[0].gpus == ("0",)


def test_a_job_is_an_ordinary_run_in_its_slot():
    inherited = {"PATH": "p", "SLURM_NTASKS": "4", "LOCAL_RANK": "1", "WANDB_MODE": "offline"}
    own = environment(Slot((0, 1), ("1",)), 2, inherited)
    assert {name for name in own if name in inherited} == {"PATH", "WANDB_MODE"}
    assert own["CUDA_VISIBLE_DEVICES"] == "1"
    assert own["OMP_NUM_THREADS"] == "2"
    assert environment(Slot((0,), ()), 8, {"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"
    assert environment(Slot((0,), ()), 0, {})["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), (2, 2), ("2", 2), ([0, 3], 2), ("0,3", 2), ("auto", 1), (-1, 1)]
)
def test_processes_are_counted_as_lightning_does(devices, number):
    assert num_processes(OmegaConf.create({"devices": devices, "accelerator": "cpu"}), 4) == number
    on_gpus = {-1: 4, "auto": 4}.get(devices if isinstance(devices, (int, str)) else 0, number)
    assert num_processes(OmegaConf.create({"devices": devices}), 4) == on_gpus


# -- whole sweeps, of a task that takes no time ------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs ``train.py -m`` in this process, with another task; returns the exit code and the table's rows."""
    monkeypatch.chdir(tmp_path)
    done = []

    def task(cfg):
        done.append(cfg.seed)
        if cfg.seed == 2:
            raise InputError("this seed is\nnot welcome")
        if cfg.seed == 3:
            raise ZeroDivisionError("a bug")
        claim.write_config(Path(cfg.run_dir), OmegaConf.to_container(cfg, resolve=True), [])
        Path(cfg.run_dir, layout.RESULTS).write_text(json.dumps(RESULTS))

    def start(*arguments):
        done.clear()
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", "experiment=smoke", "run_dir=grid", *arguments])
        try:
            monkeypatch.setattr("flows.training.run.train", task)
            entry.run("flows.training.run.train", "train")
            code = 0
        except SystemExit as end:
            code = end.code
        path = tmp_path / "grid" / "summary.csv"
        return code, list(csv.DictReader(path.open())) if path.exists() else [], list(done)

    return start


def test_a_failing_job_never_takes_the_sweep_with_it(sweep, capsys):
    code, rows, _ = sweep("seed=1,2,3,5")
    assert code == 6
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "done"]
    assert [row["error"] for row in rows[1:3]] == ["this seed is not welcome", "ZeroDivisionError: a bug"]
    assert [row["overrides"] for row in rows[:2]] == ["seed=1", "seed=2"]
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "2 of 4 jobs failed" in said.err.splitlines()[-1]
    for row in rows:
        assert row["error"][:12] in said.out


def test_a_disk_that_fails_costs_the_summary_and_not_the_jobs(sweep, monkeypatch, capsys):
    def fail(path, rows):
        raise StorageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(sweeper, "write_csv", fail)
    code, rows, done = sweep("seed=1,5")
    assert (code, rows, done) == (0, [], [1, 5])
    assert "its summary is not up to date: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["seed=5", "seed=1,5"], "seed=1"),  # given first for all, and then swept
        (["seed=1", "optimizer.lr=0.5,0.1"], "optimizer.lr=0.5"),
        (["seed=1"], "experiment=smoke,seed=1"),  # there is nothing else
    ],
)
def test_what_all_jobs_have_in_common_is_not_in_their_names(sweep, arguments, folder):
    assert Path(sweep(*arguments)[1][0]["folder"]).name == folder


def test_the_same_sweep_again_runs_only_what_is_missing(sweep):
    assert sweep("seed=1,2,1")[2] == [1, 2]
    code, rows, done = sweep("seed=2,1")
    assert (code, done) == (6, [2])
    assert [row["status"] for row in rows] == ["failed", "done before"]
    assert (float(rows[1]["val/bits_per_dim"]), float(rows[1]["test/bits_per_dim"])) == (3.5, 3.25)
    assert sweep("seed=1,7")[::2] == (0, [7])
    assert "other settings" in sweep("seed=1,7", "trainer.max_epochs=7")[1][0]["error"]


def test_a_run_waits_for_the_end_of_another_in_its_folder(tmp_path):
    def save_and_end():
        with claim.run_folder_lock(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(1)
            (tmp_path / "saved").touch()

    multiprocessing.get_context("fork").Process(target=save_and_end).start()
    wait_until((tmp_path / "held").exists)
    with claim.run_folder_lock(tmp_path):
        assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra/launcher=local_pol"], "did you mean 'local_pool'"),
        (["hydra/launcher=local_pool", "hydra.launcher.n_jbs=2"], "did you mean 'hydra.launcher.n_jobs'"),
        (["hydra/launcher=local_pool", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs must be at least 1"),
        (["hydra/launcher=slurm", "hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min"),
    ],
)
def test_a_sweep_that_cannot_be_run_stops_in_one_line(sweep, arguments, words, capsys):
    assert sweep("seed=1", *arguments) == (2, [], [])
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert words in error[0]


def test_slurm_where_there_is_none_is_said_before_anything_is_made(sweep, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sweep("seed=1", "hydra/launcher=slurm") == (2, [], [])
    assert "there is no SLURM here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plus", ["", "+"])
def test_further_options_reach_sbatch(plus, sweep, monkeypatch, tmp_path, capsys):
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        (tmp_path / name).write_text(f"#!/bin/sh\n[ {name} = squeue ] || (echo {name}: no >&2; exit 1)\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = plus + "hydra.launcher.additional_parameters={account: mine, exclusive: true}"
    assert sweep("seed=1", "hydra/launcher=slurm", options)[0] == 2
    assert "SLURM refuses the jobs" in capsys.readouterr().err
    (script,) = tmp_path.glob("grid/slurm/*.sh")
    assert {"#SBATCH --account=mine", "#SBATCH --exclusive"} <= set(script.read_text().splitlines())


@pytest.mark.parametrize("command", [["sample.py", "checkpoint=none.ckpt"], ["train.py", "seed=-1"]])
def test_a_program_without_a_sweep_imports_nothing_of_sweeps(command):
    imported = execute(sys.executable, "-X", "importtime", *command, cwd=ROOT, code=2).stderr
    assert re.search(r"\| +flows\.cli\.entry\n", imported)
    assert not re.search(r"\| +(flows\.sweeps|optuna|submitit|wandb)", imported)


# -- whole sweeps of processes -----------------------------------------------------------------------------------------

STUB = f"""
import time
from pathlib import Path
from flows.cli import entry
from flows.processes import ranks, signals
from flows.runs import layout
signals.install(is_resumable=True)
def task(cfg):
    "Does not end in its first attempt, and at once in its second."
    ranks.end_with_launcher()
    folder = Path(cfg.run_dir)
    if (folder / "begun").exists():
        (folder / layout.RESULTS).write_text({json.dumps(RESULTS)!r})
    else:
        (folder / "begun").touch()
        time.sleep(1000)
entry.run("__main__.task", "train")
"""


@pytest.mark.slow
def test_a_pool_takes_its_jobs_with_it(tmp_path):
    """Killed, it cannot end them: they see to it themselves. The same sweep goes on; stopped, it ends them."""
    (tmp_path / "stub.py").write_text(STUB)
    command = [sys.executable, "stub.py", "-m", "seed=1,2", "hydra/launcher=local_pool", "hydra.launcher.n_jobs=2"]
    command += ["run_dir=grid"]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, signals.EXIT_CODE)):
        with subprocess.Popen(command, cwd=tmp_path, env=environment_of_tests()) as parent:
            begun = [tmp_path / "grid" / f"seed={seed}" / "begun" for seed in (1, 2)]
            wait_until(lambda begun=begun: all(path.exists() for path in begun))
            jobs = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
            assert len(jobs) >= 2
            parent.send_signal(number)
            assert parent.wait(timeout=600) == code
        wait_until(lambda jobs=jobs: not any(map(is_alive, jobs)))
        for path in begun:
            path.unlink()
            log = (path.parent / "output.log").read_text()
            assert log.splitlines()[-1].startswith("interrupted by SIGTERM")
    rows = list(csv.DictReader((tmp_path / "grid" / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["stopped", "stopped"]


@pytest.mark.slow
def test_a_pool_of_trainings(tmp_path):
    """One job trains with DDP, the other fails, by an experiment in the user's own folder, which all must be told."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [smoke, override /trainer: ddp_cpu]\ntrainer: {max_epochs: 1}\n"
    )
    own = [f"hydra.searchpath=[file://{tmp_path}/mine]", "experiment=own"]
    pool = ["hydra/launcher=local_pool", "hydra.launcher.n_jobs=2"]
    run("train.py", "-m", *own, *pool, "optimizer.lr=0.001,-1", "run_dir=grid", cwd=tmp_path, code=6)
    good, bad = csv.DictReader((tmp_path / "grid" / "summary.csv").open())
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert json.loads((Path(good["folder"]) / layout.RESULTS).read_text())["steps"] == 2
    assert bad["error"] == "optimizer: Invalid learning rate: -1"


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_grid_on_slurm_with_ddp_inside(tmp_path):
    """2 x 2 jobs of two ranks; one cannot write to its folder."""
    together = ["trainer=ddp_cpu", "trainer.max_epochs=1"]
    where = ["hydra/launcher=slurm", "hydra.launcher.job_name=c-grid", "hydra.launcher.array_parallelism=2"]
    spoiled = tmp_path / "grid" / "mixing=reverse,seed=1"
    (spoiled / layout.CONFIG).mkdir(parents=True)
    sweep = ["-m", "experiment=smoke", *together, *where, "mixing=conv1x1,reverse", "seed=0,1", "run_dir=grid"]
    run("train.py", *sweep, cwd=tmp_path, code=6)
    rows = list(csv.DictReader((tmp_path / "grid" / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["done", "done", "done", "failed"]
    assert f"cannot write {spoiled}" in rows[3]["error"]
    for row in rows[:3]:
        assert json.loads((Path(row["folder"]) / layout.RESULTS).read_text())["steps"] == 2
        assert (Path(row["folder"]) / "output.1.log").is_file()


@pytest.fixture
def job_on_slurm(slurm, tmp_path):
    """A job that runs: the sweep's process, the job's folder, and its number in the queue."""
    (tmp_path / "stub.py").write_text(STUB)
    where = ["hydra/launcher=slurm", "hydra.launcher.job_name=c-stub", "run_dir=grid", "seed=7"]
    command = [sys.executable, "stub.py", "-m", *where]
    with subprocess.Popen(command, cwd=tmp_path, env=environment_of_tests()) as parent:
        folder = tmp_path / "grid" / "seed=7"
        known = [folder / name for name in ("begun", "slurm_job")]  # a job may begin before its number is noted
        wait_until(lambda: all(path.exists() for path in known))
        yield parent, folder, (folder / "slurm_job").read_text()
        parent.terminate()


@pytest.mark.slow
def test_a_job_that_slurm_kills_is_reported_as_such(job_on_slurm):
    parent, folder, number = job_on_slurm
    subprocess.run(["scancel", number], check=True)
    assert parent.wait(timeout=600) == 6
    [row] = csv.DictReader((folder.parent / "summary.csv").open())
    assert row["status"] == "failed"
    assert "SLURM: cancelled" in row["error"]


@pytest.mark.slow
def test_a_job_whose_time_ends_is_queued_again_and_goes_on(job_on_slurm):
    parent, folder, number = job_on_slurm
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    assert parent.wait(timeout=600) == 0
    [row] = csv.DictReader((folder.parent / "summary.csv").open())
    assert row["status"] == "done"
    output = (folder / "output.log").read_text()
    assert output.count("attempt of") == 2
    assert output.count("interrupted by SIGTERM") == 1
