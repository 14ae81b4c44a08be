"""What Hydra finds at the start of every program: its sweeper, and what ``basic`` means in its two groups."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Sweep(Sweeper):
    """Stands in for the sweepers of :mod:`flows.sweeps`, which are imported when a sweep begins."""

    def __init__(self, **settings: Any) -> None: ...

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from flows.sweeps.sweeper import make_sweeper

        self.sweeper = make_sweeper(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        self.sweeper.sweep(arguments)


GRID = {"_target_": "hydra_plugins.flows.Sweep", "sweeper": "flows.sweeps.sweeper.Grid", "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=GRID, provider="flows")
IN_PROCESS = {"_target_": "flows.sweeps.launcher.InProcess"}
ConfigStore.instance().store(group="hydra/launcher", name="basic", node=IN_PROCESS, provider="flows")
