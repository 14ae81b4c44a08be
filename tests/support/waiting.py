"""Waiting for what other processes do."""

import time
from pathlib import Path

SECONDS = 600
"""The longest that anything may take, on a machine that is busy with other things besides."""


def wait_until(condition, seconds=SECONDS):
    """Wait until ``condition()`` holds; fail after this number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
