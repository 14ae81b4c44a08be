"""How every program starts and how it ends."""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flows.cli.command_line import check_command_line, help_for, register_schemas
from flows.config.overrides import with_whole_values
from flows.console import say
from flows.errors import InputError, NonFiniteError, ProcessError, StorageError, SweepError, one_line
from flows.home import CONFIG_DIR, as_typed
from flows.runs.resume import replay_when_resuming

EXIT_CODES: dict[type[Exception], int] = {
    InputError: 2,
    NonFiniteError: 3,
    StorageError: 4,
    SweepError: 6,
    ProcessError: 7,
}
"""A wrong input; a training that broke; a disk that failed; a sweep with failed jobs; a process that was lost.
A bug exits with 1 and a traceback, a signal with :data:`flows.processes.signals.EXIT_CODE`."""


def run(task: str, config_name: str) -> None:
    """Check the command line, hand it to Hydra, and turn the failures a user can mend into one line on stderr.

    Args:
        task: the dotted name of the function that is given the configuration. It is imported when the command line
            has been found right: the seconds that Lightning takes are for those who train.
        config_name: the program's root configuration.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive here as they are, instead of as Hydra's summary of them
    register_schemas(CONFIG_DIR)
    with _mendable_failures_in_one_line():
        given = with_whole_values(sys.argv[1:])
        if "--version" in given:
            return say(f"emerging-flows {version('emerging-flows')}")
        if (text := help_for(CONFIG_DIR, config_name, given)) is not None:
            return say(as_typed(text))
        replayed = replay_when_resuming(given)
        is_replayed = replayed != given
        sys.argv[1:] = check_command_line(CONFIG_DIR, config_name, replayed, given=given if is_replayed else None)
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(_job(task))()


def _job(task: str) -> Callable[[DictConfig], Any]:
    """In a single run a failure ends the program at once; in a sweep the launcher says to which job it belongs."""

    def job(cfg: DictConfig) -> Any:
        function = pkgutil.resolve_name(task)
        _quieten_lightning()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return function(cfg)
        with _mendable_failures_in_one_line():
            return function(cfg)

    return job


@contextmanager
def _mendable_failures_in_one_line() -> Iterator[None]:
    try:
        yield
    except tuple(EXIT_CODES) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


def _quieten_lightning() -> None:
    """Leave out what Lightning tells about itself; it sets its own level when it is imported, which has happened."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # which somebody has asked for
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*", category=FutureWarning)
    for unneeded in (
        ".*does not have many workers.*",  # whole batches are gathered from memory: workers would only cost
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # run folders are claimed (flows.runs.claim)
        ".*WeightAveraging callback, but saving a checkpoint outside.*",
        ".*The `srun` command is available on your system but is not used.*",  # a single run on a login node is fine
        ".*`broadcast_buffers` is deprecated.*",  # its successor does not exist before torch 2.13
    ):
        warnings.filterwarnings("ignore", message=unneeded)
