"""Jobs on a real SLURM: told to end, put back into the queue, and finished with the same weights."""

import os
import shlex
import signal
import subprocess
import sys

import pytest
from cluster import show, submit, wait_until
from programs import ROOT
from test_survival import SHORT, differences, final_state

TOGETHER = [
    "trainer=ddp_cpu",
    "trainer.max_epochs=10",
    *(line for line in SHORT if not line.startswith("trainer=") and "epochs=" not in line),
]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def train(folder, name):
    """A job of two ranks, in the run folder that is the default."""
    folder.mkdir()
    program = [sys.executable, f"{ROOT}/train.py", *TOGETHER, "resume=auto"]
    command = shlex.join(["srun", f"--export=ALL,PYTHONPATH={ROOT}", *program])
    return submit(command, folder, "--ntasks-per-node=2", "--nodes=1", f"--job-name={name}")


def printed(folder):
    return (folder / "out.txt").read_text() if (folder / "out.txt").exists() else ""


@pytest.mark.usefixtures("slurm")
def test_a_preempted_job_is_requeued_once_and_ends_with_the_same_weights(tmp_path):
    preempted, undisturbed = tmp_path / "preempted", tmp_path / "undisturbed"
    job, other = train(preempted, "b-preempted"), train(undisturbed, "b-undisturbed")
    try:
        wait_until(lambda: "epoch 2" in printed(preempted) or show(job)["JobState"] in ENDED, 900)
        subprocess.run(["scancel", "--signal=USR1", job], check=True)
        wait_until(lambda: show(job)["JobState"] in ENDED, 900)
        wait_until(lambda: show(other)["JobState"] in ENDED, 900)
    finally:
        subprocess.run(["scancel", job, other], check=True)
    assert show(job)["JobState"] == show(other)["JobState"] == "COMPLETED", printed(preempted) + printed(undisturbed)
    assert (show(job)["Restarts"], show(other)["Restarts"]) == ("1", "0")
    assert printed(preempted).count("interrupted by SIGUSR1") == 1
    runs = [folder / "runs" / f"slurm-{number}" for folder, number in ((preempted, job), (undisturbed, other))]
    assert all(list(run.parent.iterdir()) == [run] for run in runs)
    one, two = map(final_state, runs)
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "random_states"):
        assert not differences(one[key], two[key], key)


# -- a preempted job of a sweep, with stand-ins for SLURM's commands ---------------------------------------------------

SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
open("begun", "w").close()
time.sleep(600)
"""
TASK = f"""
import sys
from pathlib import Path
from flows.cli.sweeps.slurm_task import SlurmTask
SlurmTask((sys.executable, "-c", {SAVES!r}), Path())()
"""


@pytest.mark.parametrize(
    ("state", "rank", "asked"), [("RUNNING", 0, "requeue 5\n"), ("RUNNING", 1, ""), ("COMPLETING", 0, "")]
)
def test_a_sweep_s_job_in_its_time_of_grace_is_put_back_unless_slurm_does(state, rank, asked, tmp_path):
    for name, line in (("squeue", f"echo {state}"), ("scontrol", 'echo "$@" >> asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "5", "SLURM_PROCID": str(rank), "SUBMITIT_EXECUTOR": "slurm"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    (tmp_path / "asked").touch()
    with subprocess.Popen([sys.executable, "-c", TASK], cwd=tmp_path, env=environment) as task:
        wait_until(lambda: (tmp_path / "begun").exists(), 60)
        task.send_signal(signal.SIGTERM)
        assert task.wait(timeout=60) == 5
    assert (tmp_path / "asked").read_text() == asked
