"""Compiled code for processors: whether it is here, and how many threads it may use.

:mod:`.convolution`, :mod:`.spectrum` and the solvers in :mod:`flows.solvers` run it. Without it PyTorch computes the
same, more slowly. The sources are in ``csrc``.
"""

from __future__ import annotations

import os

import torch

try:
    import flows.kernels._compiled as extension
except ImportError as error:
    extension = None  # type: ignore[assignment]
    _why_missing: str | None = f"its extension was not built at installation, or does not load ({error})"
else:
    _why_missing = None


class _Process:
    """Whether this process was forked from one with a running thread pool, whose threads it then lacks."""

    forked = False

    @classmethod
    def mark_as_forked(cls) -> None:
        cls.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.mark_as_forked)


def num_threads() -> int:
    """As many threads as torch uses, or one in a forked process."""
    return 1 if _Process.forked else torch.get_num_threads()


def why_not_compiled(device: torch.device) -> str | None:
    """Why compiled code cannot be used for tensors on ``device``; None if it can."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the filter is on {device}"
    return _why_missing
