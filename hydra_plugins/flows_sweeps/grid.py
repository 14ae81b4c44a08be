"""``hydra/sweeper=basic``, Hydra's grid, in which a failed job does not take the rest with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Grid(BasicSweeper):
    """All combinations. Failed jobs are in the summary; the sweeper of Hydra would raise the first and end there."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = _OnlySuccesses(self.launcher)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Launchers compose all jobs before they run the first; twice would cost seconds."""


class _OnlySuccesses(Launcher):
    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned = self.launcher.launch(job_overrides, initial_job_idx)
        return [job for job in returned if job.status is JobStatus.COMPLETED]


@dataclass
class GridConf(BasicSweeperConf):
    """``hydra.sweeper.*``."""

    _target_: str = "hydra_plugins.flows_sweeps.grid.Grid"


ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=GridConf, provider="flows")
