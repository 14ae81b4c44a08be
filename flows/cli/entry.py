"""How every program starts and how it ends."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flows.cli import schema
from flows.cli.command_line import check_command_line, expand_globs
from flows.cli.runs import replay_when_resuming
from flows.errors import InputError, NonFiniteError, ProcessError, StorageError, SweepError, one_line

EXIT_CODES: dict[type[Exception], int] = {
    InputError: 2,
    NonFiniteError: 3,
    StorageError: 4,
    SweepError: 6,
    ProcessError: 7,
}
"""A wrong input; a training that broke; a disk that failed; a sweep with failed jobs; a process that was lost.
A bug exits with 1 and a traceback, a signal with :data:`flows.signals.EXIT_CODE`."""


def run(task: Callable[[DictConfig], Any], config_name: str, config_dir: Path) -> None:
    """Check the command line, hand it to Hydra, and turn the failures a user can mend into one line on stderr."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive here as they are, instead of as Hydra's summary of them
    schema.register()
    _quieten_lightning()
    with _mendable_failures_in_one_line():
        given = sys.argv[1:]
        replayed = replay_when_resuming(given)
        sys.argv[1:] = expand_globs(config_dir, replayed)
        check_command_line(config_dir, config_name, sys.argv[1:], is_replayed=replayed != given)
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(_as_job(task))()


def _as_job(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """In a single run a failure ends the program at once; in a sweep the launcher says to which job it belongs."""

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return task(cfg)
        with _mendable_failures_in_one_line():
            return task(cfg)

    return job


@contextmanager
def _mendable_failures_in_one_line() -> Iterator[None]:
    try:
        yield
    except tuple(EXIT_CODES) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


def _quieten_lightning() -> None:
    """Leave out what Lightning tells about itself: devices it did not find, products to install, its own imports."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*", category=FutureWarning)
    for unneeded in (
        ".*does not have many workers.*",  # whole batches are gathered from memory: workers would only cost
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # run folders are claimed (flows.cli.runs)
        ".*WeightAveraging callback, but saving a checkpoint outside.*",
        ".*The `srun` command is available on your system but is not used.*",  # a single run on a login node is fine
        ".*`broadcast_buffers` is deprecated.*",  # its successor does not exist before torch 2.13
    ):
        warnings.filterwarnings("ignore", message=unneeded)
