"""The root of each program's configuration: every key that may stand there, with its type.

Defaults stand in the YAML files alone. The groups' own contents are checked against the signatures of what they
build (:mod:`flows.config`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from flows.runs.claim import run_name


@dataclass
class TrainSchema:
    """Root of ``train.py``'s configuration."""

    mixing: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    coupling: dict[str, Any] = field(default_factory=dict)
    dequantizer: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)  # from here on a check imports Lightning, which takes seconds
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int = MISSING
    precision: str = MISSING
    run_dir: str = MISSING
    parameter_groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: Any = None
    resume: str | None = None
    on_nan: str = MISSING
    keep_last: int = MISSING


@dataclass
class SampleSchema:
    """Root of ``sample.py``'s configuration."""

    checkpoint: str = MISSING
    weights: str = MISSING
    mode: str = MISSING
    num_samples: int = MISSING
    temperature: float = MISSING
    seed: int = MISSING
    batch_size: int = MISSING
    images: str | None = None
    output: str = MISSING
    device: str = MISSING


@dataclass
class EvaluateSchema:
    """Root of ``evaluate.py``'s configuration."""

    checkpoint: str = MISSING
    weights: str = MISSING
    num_samples: int = MISSING
    images: str | None = None
    batch_size: int = MISSING
    seed: int = MISSING
    output: str | None = None
    device: str = MISSING


@dataclass
class PrepareSchema:
    """Root of ``prepare.py``'s configuration."""

    augment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    verify: bool = False
    preview: str | None = None
    seed: int = MISSING


@dataclass
class ReportSchema:
    """Root of ``report.py``'s configuration."""

    runs: Any = MISSING
    output: str = MISSING
    weights: str = MISSING
    timing: bool = MISSING
    batch_size: int = MISSING
    device: str = MISSING


def register() -> None:
    """Make known to Hydra the schemas, under the names that the YAML files' defaults use, and ``${run_name:}``."""
    OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
    store = ConfigStore.instance()
    roots = {
        "train": TrainSchema,
        "sample": SampleSchema,
        "evaluate": EvaluateSchema,
        "prepare": PrepareSchema,
        "report": ReportSchema,
    }
    for name, schema in roots.items():
        store.store(name=f"{name}_schema", node=schema)
