"""How every program starts and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from flows.cli import schema
from flows.cli.command_line import check_command_line
from flows.cli.runs import replay_when_resuming
from flows.errors import InputError, NonFiniteError, StorageError

USER_MISTAKE, NOT_FINITE, NOT_STORED = 2, 3, 4
"""Exit codes: a wrong input; a training that broke; a disk that failed. A bug exits with 1 and a traceback."""


def run(task: Callable[[DictConfig], Any], config_name: str, config_dir: Path) -> None:
    """Check the command line, hand it to Hydra, and turn the failures a user can mend into one line on stderr."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive here as they are, instead of as Hydra's summary of them
    schema.register()
    try:
        sys.argv[1:] = replay_when_resuming(sys.argv[1:])
        check_command_line(config_dir, config_name, sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(task)()
    except InputError as error:
        _stop(error, USER_MISTAKE)
    except NonFiniteError as error:
        _stop(error, NOT_FINITE)
    except StorageError as error:
        _stop(error, NOT_STORED)


def _stop(error: Exception, code: int) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
