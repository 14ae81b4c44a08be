"""Jobs on a real SLURM: told to end, put back into the queue, and finished with the same weights."""

import os
import shlex
import signal
import subprocess
import sys

import pytest
from support.programs import ROOT, environment
from support.short_runs import SHORT, assert_same_state, final_state
from support.slurm import show, submit
from support.waiting import wait_until

from flows.processes import signals

pytestmark = pytest.mark.slow

TOGETHER = [
    "trainer=ddp_cpu",
    "trainer.max_epochs=10",
    *(line for line in SHORT if not line.startswith("trainer=") and "epochs=" not in line),
]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


WAITING = ["+callbacks.wait._target_=support.witness.WaitToBeTold", "+callbacks.wait.step=54"]
"""For a job that is to be told to end before it has ended by itself, however fast it is and however late the signal."""


def train(folder, name, *options):
    """A job of two ranks, in the run folder that is the default."""
    folder.mkdir()
    program = [sys.executable, f"{ROOT}/train.py", *TOGETHER, *options, "resume=auto"]
    command = shlex.join(["srun", f"--export=ALL,PYTHONPATH={ROOT}:{ROOT}/tests", *program])
    return submit(command, folder, "--ntasks-per-node=2", "--nodes=1", f"--job-name={name}")


def printed(folder):
    return (folder / "out.txt").read_text() if (folder / "out.txt").exists() else ""


@pytest.mark.usefixtures("slurm")
def test_a_preempted_job_is_requeued_once_and_ends_with_the_same_weights(tmp_path):
    preempted, undisturbed = tmp_path / "preempted", tmp_path / "undisturbed"
    job, other = train(preempted, "b-preempted", *WAITING), train(undisturbed, "b-undisturbed")
    try:
        wait_until(lambda: "epoch 2" in printed(preempted) or show(job)["JobState"] in ENDED)
        subprocess.run(["scancel", "--signal=USR1", job], check=True)
        wait_until(lambda: show(job)["JobState"] in ENDED)
        wait_until(lambda: show(other)["JobState"] in ENDED)
    finally:
        subprocess.run(["scancel", job, other], check=True)
    assert show(job)["JobState"] == show(other)["JobState"] == "COMPLETED", printed(preempted) + printed(undisturbed)
    assert (show(job)["Restarts"], show(other)["Restarts"]) == ("1", "0")
    assert printed(preempted).count("interrupted by SIGUSR1") == 1
    runs = [folder / "runs" / f"slurm-{number}" for folder, number in ((preempted, job), (undisturbed, other))]
    assert all(list(run.parent.iterdir()) == [run] for run in runs)
    assert_same_state(*map(final_state, runs))


# -- who is put back, with stand-ins for SLURM's commands --------------------------------------------------------------

PREEMPTED = "RUNNING 2030-01-01T00:00:00"


RUN = (
    "import signal, sys, time; from flows.processes import signals; signals.install(is_resumable=True); "
    "open('begun', 'w'); time.sleep(600)"
)
JOB = f"""
import os, sys
from pathlib import Path
from flows.sweeps.slurm import SlurmTask
os.environ["SUBMITIT_EXECUTOR"] = "slurm"
SlurmTask((sys.executable, "-c", {RUN!r}), Path())()
"""
PROGRAMS = {"run": RUN, "job of a sweep": JOB}


@pytest.mark.parametrize(
    ("program", "number", "said", "rank", "asked"),
    [
        ("run", signal.SIGUSR1, "RUNNING N/A", 0, "requeue 5\n"),
        ("run", signal.SIGUSR1, "COMPLETING N/A", 0, ""),
        ("run", signal.SIGUSR1, "", 0, ""),
        ("run", signal.SIGTERM, PREEMPTED, 0, "requeue 5\n"),
        ("run", signal.SIGTERM, "RUNNING N/A", 0, ""),  # srun says it to the others when one process has failed
        ("run", signal.SIGINT, PREEMPTED, 0, ""),
        ("job of a sweep", signal.SIGTERM, PREEMPTED, 0, "requeue 5\n"),
        ("job of a sweep", signal.SIGTERM, PREEMPTED, 1, ""),
        ("job of a sweep", signal.SIGTERM, "RUNNING N/A", 0, ""),
    ],
)
def test_a_job_is_put_back_by_its_first_process_if_nobody_else_has_decided_about_it(
    program, number, said, rank, asked, tmp_path
):
    for name, line in (("squeue", f"echo {said}"), ("scontrol", 'echo "$@" >> asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "asked").touch()
    own = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="5", SLURM_PROCID=str(rank))
    running = subprocess.Popen([sys.executable, "-c", PROGRAMS[program]], cwd=tmp_path, env=own)
    wait_until((tmp_path / "begun").exists)
    running.send_signal(number)
    assert running.wait(timeout=600) == (signals.EXIT_CODE if rank == 0 else 0)
    assert (tmp_path / "asked").read_text() == asked
