"""A real SLURM for the tests: the one that answers here, else one on this machine for as long as it is needed."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
FOLDER = Path(os.environ.get("SLURM_ROOT") or Path(tempfile.gettempdir()) / "slurm-test")
BY_TESTS = FOLDER / "by-tests"
"""Is there if tests have brought up the cluster, and no person."""


def is_up():
    """Whether a cluster answers; without a configuration the clients would ask the network for one, a minute long."""
    if not Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf")).exists():
        return False
    return subprocess.run(["timeout", "60", "sinfo"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def slurm():
    """A cluster. If there is none, the first test process brings it up, and the last one takes it down again.

    All test processes on this machine share it, also those of other test runs. While one needs the cluster it holds a
    lock, which the system lets go of when the process ends, however it ends.
    """
    if not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))):
        pytest.skip("Debian's packages slurm-wlm and munge are not installed")
    if os.getuid() != 0:
        if not is_up():
            pytest.skip("no SLURM answers, and only root can bring one up")
        yield
        return
    turn = FileLock("/tmp/slurm-test.turn")
    with open("/tmp/slurm-test.users", "w") as users:
        with turn:
            if not is_up():
                subprocess.run([SCRIPT, "start"], check=True, timeout=600)
                BY_TESTS.touch()
            fcntl.flock(users, fcntl.LOCK_SH)
        yield
        with turn:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # others need it still
            if BY_TESTS.exists():
                subprocess.run([SCRIPT, "stop"], check=True, timeout=600)


def submit(command, cwd, *options):
    """Submit a shell command as a job that runs in ``cwd`` and prints to ``out.txt`` there; returns its number."""
    sbatch = ["sbatch", "--parsable", "--requeue", "--output=out.txt", "--open-mode=append", *options]
    return subprocess.check_output(sbatch, input=f"#!/bin/bash\n{command}\n", cwd=cwd, text=True).strip()


def show(job):
    """What the cluster knows of a job: its fields by their names."""
    text = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
    return dict(field.split("=", 1) for field in text.split() if "=" in field)
