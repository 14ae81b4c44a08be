"""``hydra/sweeper=basic``: all combinations, and a failed job does not take the rest with it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from flows.errors import InputError
from flows.sweeps.summary import Summary
from flows.sweeps.sweeper import JobSweeper


class Grid(JobSweeper):
    """All combinations of the given values.

    Args:
        max_batch_size: jobs handed to the launcher at a time; ``None``: all.
        params: see :class:`.JobSweeper`.

    Raises:
        InputError: an interval has no values to combine.
        SweepError: jobs failed; the others are done.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None) -> None:
        super().__init__(params or {})
        self.max_batch_size = max_batch_size

    def sweep(self, arguments: list[str]) -> None:
        jobs = list(itertools.product(*map(_choices, self.parse(arguments))))
        self.sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.sweep_dir / "multirun.yaml")
        summary = self.launcher.summary = Summary(self.sweep_dir, len(jobs))
        size = self.max_batch_size or len(jobs)
        try:
            for start in range(0, len(jobs), size):
                self.launcher.launch(jobs[start : start + size], initial_job_idx=start)
        finally:
            summary.show()
        summary.require_success()


def _choices(override: Override) -> list[str]:
    """One override per value of a sweep; any other override as it is."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise InputError(f"{override.input_line!r} has no values to combine: search it with hparams_search=optuna")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
