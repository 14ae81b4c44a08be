"""The root of each program's configuration: every key that may stand there, with its type.

Defaults stand in the YAML files alone. The groups' own contents are checked against the signatures of what they
build (:mod:`flows.config.checking`), in the order of the keys here: those that need Lightning come last, since its
import takes seconds.
"""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from flows.runs.claim import run_name

Text = str | None
Group = dict[str, Any]

MODEL = ("mixing", "network", "coupling", "dequantizer", "prior", "model")
GROUPS = (*MODEL, "optimizer", "schedule", "augment", "data", "trainer", "callbacks", "logger")
CHECKPOINT = dict(checkpoint=str, weights=str, seed=int, device=str)
"""Keys of the programs that read a flow from a checkpoint."""

ROOTS: dict[str, dict[str, Any]] = {
    "train": dict.fromkeys((*GROUPS, "recipe"), Group)
    | dict(seed=int, precision=str, run_dir=str, parameter_groups=dict[str, Group], budget=Any)
    | dict(resume=Text, on_nan=str, keep_last=int),
    "sample": CHECKPOINT | dict(mode=str, num_samples=int, temperature=float, batch_size=int, images=Text, output=str),
    "evaluate": CHECKPOINT | dict(num_samples=int, images=Text, batch_size=int, output=Text),
    "prepare": dict(augment=Group, data=Group, verify=bool, preview=Text, seed=int),
    "report": dict(runs=Any, output=str, weights=str, timing=bool, batch_size=int, device=str),
}


def register() -> None:
    """Make known to Hydra the schemas, under the names that the YAML files' defaults use, and ``${run_name:}``."""
    OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
    for name, keys in ROOTS.items():
        fields = [
            (key, kind, field(default_factory=dict) if get_origin(kind) is dict else field(default=MISSING))
            for key, kind in keys.items()
        ]
        ConfigStore.instance().store(name=f"{name}_schema", node=make_dataclass(f"{name.title()}Schema", fields))
