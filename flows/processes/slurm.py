"""What a program asks of SLURM. Imports nothing that takes time."""

from __future__ import annotations

import os
import subprocess

from flows.console import warn

INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which a person types commands."""

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Environment variables in which launchers give a process its number."""


def job_id() -> str | None:
    """The number of the SLURM job that this process belongs to, of an array with the task's; ``None`` outside."""
    if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def rank() -> int:
    """The number of this process among those that train together; 0 speaks for all."""
    return max(int(os.environ.get(name, 0)) for name in RANKS)


def requeue(only_if_preempted: bool) -> None:
    """Put this job back into its queue like :func:`put_back`, unless submitit has submitted it and does that itself."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        put_back(only_if_preempted)


def put_back(only_if_preempted: bool) -> None:
    """Requeue this job unless SLURM or the user has already ended it. Does nothing outside of SLURM.

    A job that its user has cancelled, or that SLURM requeues by itself, is no longer "running" when its processes are
    told to end. A preempted job still is during its grace time; if it exits by itself, SLURM does not requeue it.

    Args:
        only_if_preempted: not if its processes were told to end for another reason: when one has failed, ``srun`` tells
            the others, and a job that begins again would fail again.
    """
    job = job_id()
    if job is None:
        return
    try:
        state = _ask("squeue", "--noheader", "--Format=State,PreemptTime", f"--jobs={job}").split()
        if state[:1] == ["RUNNING"] and not (only_if_preempted and state[1:] == ["N/A"]):
            _ask("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warn(f"job {job} could not be requeued: {str(reason).strip()}")


def _ask(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()
