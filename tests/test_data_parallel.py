"""Several processes that train together: they compute what one computes, and end together."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.configs import compose
from support.forks import refusal
from support.programs import ROOT, environment, error_line, execute, run
from support.small_training import StripesModule
from support.waiting import is_alive, wait_until

from flows.errors import InputError, NonFiniteError, ProcessError, StorageError
from flows.processes import ranks, signals
from flows.training.run import build_trainer

DIGITS = [
    "experiment=smoke",
    "data=digits",
    "data.images_per_epoch=null",
    "data.batch_size=256",
    "data.eval_batch_size=32",
    "trainer.limit_val_batches=1.0",
    "mixing=shuffle",
    "+callbacks.witness._target_=support.witness.Witness",
    "+callbacks.witness.folder=witness",
]
BESIDE_THE_PYTHON = Path(sys.executable).parent


def witnessed(folder, num_processes):
    return [json.loads((folder / f"witness/{r}-of-{num_processes}.json").read_text()) for r in range(num_processes)]


def logged(run_dir, column):
    rows = csv.DictReader((run_dir / "metrics/version_0/metrics.csv").open())
    return [float(row[column]) for row in rows if row.get(column)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run("train.py", *DIGITS, "trainer=cpu", "run_dir=run", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same run by two processes, two batches a step each, which keep little; in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a user folder")
    options = ["trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", "model.memory=invert", "run_dir='a run'"]
    return folder, run("train.py", *DIGITS, *options, cwd=folder)


@pytest.mark.slow
def test_replicas_and_their_averages_are_identical_to_the_last_bit_from_the_start(together):
    first, second = witnessed(together[0], 2)
    for when in ("before", "after", "averaged"):
        assert first[when] == second[when], when
    changed = [name for name, digest in first["before"].items() if first["after"][name] != digest]
    assert any(name.endswith("actnorm.bias") for name in changed)
    assert not any(name.endswith(("permutation", "actnorm.initialized")) for name in changed)


@pytest.mark.slow
def test_each_step_sees_the_images_and_the_noise_that_one_process_sees(alone, together):
    (whole,), ranks = witnessed(alone, 1), witnessed(together[0], 2)
    assert len(whole["indices"]) == 10
    for what in ("indices", "noise"):
        for step, expected in enumerate(whole[what]):
            shares = [rank[what][2 * step] + rank[what][2 * step + 1] for rank in ranks]
            assert [shares[place % 2][place // 2] for place in range(256)] == expected
    epoch = [index for batch in whole["indices"][:5] for index in batch]
    assert len(set(epoch)) == len(epoch) == 1280


@pytest.mark.slow
def test_two_processes_learn_as_one_does(alone, together):
    for column in ("train/bits_per_dim", "train/gradient_norm", "val/bits_per_dim", "val/bits_per_dim_averaged"):
        one, two = logged(alone / "run", column), logged(together[0] / "a run", column)
        assert len(one) == len(two) >= 2
        assert two == pytest.approx(one, abs=2e-4), column
    one, two = (json.loads((path / "results.json").read_text()) for path in (alone / "run", together[0] / "a run"))
    assert two["test/bits_per_dim"] == pytest.approx(one["test/bits_per_dim"], abs=2e-4)
    assert (two["num_images"], two["steps"]) == (one["num_images"], one["steps"]) == (300, 10)
    assert two["val/bits_per_dim"] == pytest.approx(one["val/bits_per_dim"], abs=2e-4)
    assert two["flops_per_image"] > one["flops_per_image"] > 0  # the networks run again, in the backward pass
    for results, num_devices in ((one, 1), (two, 2)):
        assert results["num_devices"] == num_devices
        assert results["device_hours"] == pytest.approx(results["seconds"] * num_devices / 3600)


@pytest.mark.slow
def test_everything_is_written_once(alone, together):
    folder, done = together
    assert sorted(os.listdir(folder)) == ["a run", "witness"]
    left = [
        sorted(path.relative_to(run_dir) for path in run_dir.rglob("*"))
        for run_dir in (alone / "run", folder / "a run")
    ]
    assert left[0] == left[1]
    for words in ("epoch 1/2, step 5:", "epoch 2/2, step 10:", "test bits/dim, raw weights", "writing to"):
        assert done.stdout.count(words) == 1, words
    assert not done.stderr.strip()


# -- other ways to start ----------------------------------------------------------------------------------------------


PLAIN = [option for option in DIGITS if "witness" not in option]


def only_run(folder, done, steps):
    """The one run folder that a run of one epoch left, seen to be whole."""
    (run_dir,) = (folder / "runs").iterdir()
    assert json.loads((run_dir / "results.json").read_text())["steps"] == steps
    assert len(list(run_dir.glob("samples/step=*.png"))) == steps // 5
    assert done.stdout.count(f"step {steps}: ") == 1
    return run_dir


@pytest.mark.slow
def test_torchrun_trains_in_one_folder_where_processes_started_plainly_go_on(alone, tmp_path):
    command = [BESIDE_THE_PYTHON / "torchrun", "--standalone", "--nproc-per-node=2", ROOT / "train.py"]
    done = execute(*command, *PLAIN, "trainer=ddp_cpu", "trainer.max_epochs=1", cwd=tmp_path)
    run_dir = only_run(tmp_path, done, steps=5)
    done = run("train.py", f"resume='{run_dir}'", "trainer.max_epochs=2", cwd=tmp_path)
    only_run(tmp_path, done, steps=10)
    losses = logged(run_dir, "train/bits_per_dim")
    assert losses == pytest.approx(logged(alone / "run", "train/bits_per_dim"), abs=2e-4)


# -- one that is lost -------------------------------------------------------------------------------------------------


def wait_for_the_end_of(pids):
    pids = list(pids)
    wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_named(tmp_path):
    doomed = [*DIGITS, "trainer=ddp_cpu", "run_dir=run", "+callbacks.witness.fate=killed"]
    line = error_line(run("train.py", *doomed, cwd=tmp_path, code=7).stderr)
    assert line.startswith("error: process 1 of the 2 that train together") and "was killed by SIGKILL" in line
    wait_for_the_end_of(witness["pid"] for witness in witnessed(tmp_path, 2))


BEGIN = """
import os, sys, time
from pathlib import Path
folder, rank = Path(__file__).parent, int(os.environ["RANK"])
(folder / f"{rank}.part").write_text(str(os.getpid()))
(folder / f"{rank}.part").rename(folder / f"{rank}")
while not all((folder / f"{other}").exists() for other in range(3)):
    time.sleep(0.05)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a small program the one that three processes run; each notes its number, and goes on when all have."""

    def write(body):
        path = tmp_path / "program.py"
        path.write_text(f"{BEGIN}{body}\n")
        monkeypatch.setattr(sys, "argv", [str(path)])

    yield write
    wait_for_the_end_of(int((tmp_path / f"{rank}").read_text()) for rank in range(3))


def test_all_processes_get_the_arguments_as_they_are(program, tmp_path):
    program("open(f'{sys.argv[1]}/got {rank}', 'w').write(repr(sys.argv[1:]))")
    arguments = [str(tmp_path), "run_dir='it\\'s \"here\"'", "a b", "$HOME *"]
    ranks.launch_ranks(arguments, 3)
    assert [(tmp_path / f"got {rank}").read_text() for rank in range(3)] == [repr(arguments)] * 3


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("time.sleep(0 if rank == 2 else 600)\nsys.exit(2)", InputError, "process 2 of the 3 .* failed"),
        ("time.sleep(0 if rank == 1 else 600)\nsys.exit(3)", NonFiniteError, "process 1 of the 3 .* failed"),
        ("time.sleep(0 if rank == 0 else 600)\nsys.exit(4)", StorageError, "process 0 of the 3 .* failed"),
        ("time.sleep(0 if rank == 1 else 600)\nos.kill(os.getpid(), 9)", ProcessError, "process 1 .* by SIGKILL"),
    ],
)
def test_the_first_process_that_ends_too_early_ends_all_and_is_named(body, error, words, program):
    program(body)
    with pytest.raises(error, match=words):
        ranks.launch_ranks([], 3)


def test_processes_that_end_upon_a_signal_are_no_error(program):
    program("time.sleep(0 if rank == 0 else 600)\nsys.exit(5)")
    with pytest.raises(signals.Interrupted) as caught:
        ranks.launch_ranks([], 3)
    assert caught.value.code == 5


def test_processes_end_when_their_launcher_is_killed(program, tmp_path):
    program("from flows.processes.ranks import end_with_launcher as end\nend()\ntime.sleep(600)")
    start_them = f"import sys; sys.argv = {sys.argv}; from flows.processes import ranks; ranks.launch_ranks([], 3)"
    starter = subprocess.Popen([sys.executable, "-c", start_them], env=environment())
    wait_until(lambda: all((tmp_path / f"{rank}").exists() for rank in range(3)))
    starter.kill()
    starter.wait()


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
    ],
)
def test_a_lost_connection_is_one_line_after_a_while(error, monkeypatch):
    trainer = two_devices(monkeypatch)
    monkeypatch.setattr(ranks, "PATIENCE", 0.0)
    with pytest.raises(InputError, match="cannot meet at"), ranks.explain_lost_connection(trainer):
        raise error
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.signal, "signal", lambda number, handler: None)
    with pytest.raises(ProcessError, match="process 0 of the 2"), ranks.explain_lost_connection(trainer):
        raise error
    with pytest.raises(RuntimeError, match="a bug"), ranks.explain_lost_connection(trainer):
        raise RuntimeError("a bug")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_stops_before_any_work(tmp_path):
    options = ["experiment=smoke", "trainer=ddp_cpu", "data.batch_size=9", "run_dir=run"]
    line = refusal("train.py", *options, cwd=tmp_path)
    assert "data.batch_size=9" in line and "it must be a multiple of 2, such as 8 or 10" in line
    assert not os.listdir(tmp_path)


def test_devices_among_which_the_images_cannot_be_dealt_out_are_refused():
    data = StripesModule(batch_size=20)
    data.setup()
    assert data.micro_batch_size(2, 5) == 2
    data.require_shares(len(data.val), 1)
    with pytest.raises(InputError, match="a multiple of 32, such as 32"):
        data.require_shares(32, 1)
    with pytest.raises(InputError, match=r"20 devices cannot share a validation split of 10: .* trainer\.devices"):
        data.require_shares(20, 1)


@pytest.mark.parametrize(("gpus", "words"), [(0, "no CUDA GPU here: trainer=cpu"), (1, "your machine only has: [0]")])
def test_more_gpus_than_there_are_is_one_line(gpus, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = compose("trainer=ddp", "trainer.devices=4")
    with pytest.raises(InputError) as caught:
        build_trainer(config | {"callbacks": {}}, [])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_processes_that_are_being_ended_say_nothing(monkeypatch):
    trainer = two_devices(monkeypatch)
    monkeypatch.setattr(signals, "received", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(signals.Interrupted), ranks.explain_lost_connection(trainer):
        raise torch.distributed.DistBackendError("the other one is gone")


def two_devices(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("started", [3, 4])
def test_another_number_of_processes_than_devices_is_refused(started, monkeypatch):
    trainer = two_devices(monkeypatch, SLURM_STEP_NUM_TASKS=started)
    with pytest.raises(InputError, match=rf"{started} processes were started, but .* = 2 x 1 = 2"):
        ranks.must_launch_ranks(trainer)


def test_processes_are_missing_when_nobody_started_them(monkeypatch):
    assert ranks.must_launch_ranks(two_devices(monkeypatch))


def test_several_nodes_need_somebody_who_starts_processes_there(monkeypatch):
    trainer = two_devices(monkeypatch)
    monkeypatch.setattr(type(trainer), "num_nodes", 2)
    with pytest.raises(InputError, match="by srun or by torchrun there"):
        ranks.must_launch_ranks(trainer)
