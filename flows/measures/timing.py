"""How times are measured: what is compared takes turns, and the fastest of many runs counts.

On a shared machine others can only slow a run down, so the minimum is the steadiest figure. Since neighbours come and
go, the candidates are interleaved, and ratios within one table mean more than its times.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def fastest_of_many(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    device: torch.device,
    min_rounds: int = 3,
    warm_up: bool = True,
) -> dict[str, float]:
    """Seconds that each candidate takes at best, in rounds that run every candidate once.

    Args:
        candidates: functions without arguments, by name.
        seconds: rounds start until so much time has passed.
        device: a CUDA device is waited for before and after each run.
        min_rounds: the least number of rounds, besides those to warm up.
        warm_up: run each once, untimed, before (twice on a CUDA device, where the second call captures graphs).
    """
    best = dict.fromkeys(candidates, float("inf"))
    if warm_up:
        for candidate in [*candidates.values()] * (2 if device.type == "cuda" else 1):
            candidate()
    start, rounds = time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - start < seconds:
        for name, candidate in candidates.items():
            best[name] = min(best[name], _time_once(candidate, device))
        rounds += 1
    return best


def _time_once(candidate: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    candidate()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def device_name(device: torch.device) -> str:
    """The GPU's, or the processor's with the number of its threads that PyTorch uses."""
    machine = describe_machine(device)
    if machine["gpu"] is not None:
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"


def describe_machine(device: torch.device) -> dict[str, object]:
    """What the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
