"""What all sweepers share: a launcher, and the overrides that a sweep was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flows.errors import InputError, first_line
from flows.sweeps.launcher import SweepLauncher


class JobSweeper(Sweeper):
    """Makes jobs out of overrides, and hands them to one of our launchers.

    Args:
        params: sweeps, as on the command line, which goes before: ``{optimizer.lr: "interval(1e-4, 1e-2)"}``.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: SweepLauncher

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(  # type: ignore[assignment] # ours have all its names
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @property
    def sweep_dir(self) -> Path:
        """The folder of the whole sweep."""
        return self.launcher.sweep_dir

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """The overrides of the configuration and of the command line, of several for one key the last.

        Raises:
            InputError: those of the configuration cannot be read.
        """
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        try:
            parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(lines)
        except HydraException as error:
            raise InputError(f"hydra.sweeper.params cannot be read: {first_line(error)}") from error
        return list({override.get_key_element().lstrip("+"): override for override in parsed}.values())
