"""What Hydra finds at the start of every program: the sweepers and launchers of :mod:`flows.sweeps`, by their names.

Hydra runs this module before it enters it into ``sys.modules``, where dataclasses look up annotations that are texts:
hence no ``from __future__ import annotations``.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


class _StandIn:
    """Stands in for a class of :mod:`flows.sweeps`, which is imported when Hydra makes the first instance."""

    body: str
    setup: Any = None  # nothing is abstract, or Hydra would pass over it
    launch: Any = None
    sweep: Any = None

    def __new__(cls, **settings: Any) -> Any:
        module, _, name = cls.body.rpartition(".")
        return getattr(import_module(module), name)(**settings)


class Grid(_StandIn, Sweeper):  # noqa: D101
    body = "flows.sweeps.grid.Grid"


class Search(_StandIn, Sweeper):  # noqa: D101
    body = "flows.sweeps.search.Search"


class InProcess(_StandIn, Launcher):  # noqa: D101
    body = "flows.sweeps.in_process.InProcess"


class LocalPool(_StandIn, Launcher):  # noqa: D101
    body = "flows.sweeps.local_pool.LocalPool"


class Slurm(_StandIn, Launcher):  # noqa: D101
    body = "flows.sweeps.slurm.Slurm"


@dataclass
class GridConf:
    """``hydra/sweeper=basic``."""

    _target_: str = "hydra_plugins.flows.Grid"
    max_batch_size: int | None = None
    params: dict[str, Any] | None = None


@dataclass
class SearchConf:
    """``hydra/sweeper=optuna``."""

    _target_: str = "hydra_plugins.flows.Search"
    study_name: str = "search"
    storage: str | None = None
    n_trials: int = 20
    n_jobs: int | None = None
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class InProcessConf:
    """``hydra/launcher=basic``."""

    _target_: str = "hydra_plugins.flows.InProcess"


@dataclass
class LocalPoolConf:
    """``hydra/launcher=local_pool``."""

    _target_: str = "hydra_plugins.flows.LocalPool"
    n_jobs: int | None = None
    grace_s: float = 60.0


@dataclass
class SlurmConf:
    """``hydra/launcher=slurm``."""

    _target_: str = "hydra_plugins.flows.Slurm"
    partition: str | None = None
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    timeout_min: int = 60
    signal_delay_s: int = 90
    max_num_timeout: int = 10
    array_parallelism: int = 256
    job_name: str = "${hydra.job.name}"
    setup: list[str] = field(default_factory=list)
    additional_parameters: Any = None  # a dict, but to one of those Hydra adds keys by + alone


for group, name, node in (
    ("sweeper", "basic", GridConf),
    ("sweeper", "optuna", SearchConf),
    ("launcher", "basic", InProcessConf),
    ("launcher", "local_pool", LocalPoolConf),
    ("launcher", "slurm", SlurmConf),
):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="flows")
