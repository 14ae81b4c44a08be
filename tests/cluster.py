"""A real SLURM for the tests: the one that answers here, else one on this machine for as long as it is needed."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

SCRIPT = Path(__file__).with_name("slurm_cluster.sh")


def is_up():
    """Whether a cluster answers; without a configuration the clients would ask the network for one, a minute long."""
    if not Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf")).exists():
        return False
    return subprocess.run(["timeout", "10", "sinfo"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A cluster. Of several test processes the first brings it up and the last takes it down, if it was not there."""
    if not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))):
        pytest.skip("Debian's packages slurm-wlm and munge are not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    lock, users = FileLock(folder / "slurm.lock"), folder / "slurm.users"
    with lock:
        ours = users.exists()
        if not ours and not is_up():
            subprocess.run([SCRIPT, "start"], check=True, timeout=120)
            ours = True
        if ours:
            users.write_text(str(int(users.read_text() if users.exists() else 0) + 1))
    yield
    if ours:
        with lock:
            remaining = int(users.read_text()) - 1
            users.write_text(str(remaining))
            if remaining == 0:
                users.unlink()
                subprocess.run([SCRIPT, "stop"], check=True, timeout=120)


def submit(command, cwd, *options):
    """Submit a shell command as a job that runs in ``cwd`` and prints to ``out.txt`` there; returns its number."""
    sbatch = ["sbatch", "--parsable", "--requeue", "--output=out.txt", "--open-mode=append", *options]
    done = subprocess.run(
        sbatch, input=f"#!/bin/bash\n{command}\n", cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def show(job):
    """What the cluster knows of a job: its fields by their names."""
    text = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
    return dict(field.split("=", 1) for field in text.split() if "=" in field)


def wait_until(condition, seconds):
    """Wait until ``condition()`` holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
