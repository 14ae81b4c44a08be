"""Jobs on a real SLURM: told to end, put back into the queue, and finished with the same weights."""

import shlex
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
