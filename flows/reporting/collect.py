"""What is in some run folders, finished, running or dead; whatever cannot be read is named and passed over."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from flows.errors import InputError, first_line
from flows.runs.checkpoint import Weights
from flows.runs.claim import is_locked
from flows.runs.layout import (
    CONFIG,
    EVALUATIONS,
    FINAL_SAMPLES,
    LOCK,
    METRICS,
    METRICS_FILE,
    RESULTS,
    SAMPLES,
    TEST_SCORES,
)

SCORES: dict[Weights, str] = {"raw": "test/bits_per_dim", "averaged": "test/bits_per_dim_averaged"}
"""The scores that results hold, by the weights that they are of."""

NOT_FINITE: dict[Weights, str] = {"raw": "samples_not_finite", "averaged": "samples_not_finite_averaged"}
"""How many of a run's ``num_samples`` samples at temperature 1 overflow, by the weights that draw them."""


COST = "cost/device_hours"
"""The metric that says, at every validation, what the training has cost so far."""


class Status(Enum):
    """How far a run has come."""

    FINISHED = "finished"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Problem:
    """Something that could not be read or does not fit together."""

    where: str
    what: str


Points = tuple[Sequence[float], Sequence[float]]
"""The coordinates of a line."""


@dataclass(frozen=True)
class Curve:
    """A metric over training, by increasing optimiser step."""

    steps: list[int]
    values: list[float]

    def against(self, other: Curve) -> Points:
        """Points of another metric and this one, at the steps where both are known."""
        known = dict(zip(other.steps, other.values, strict=True))
        points = [(known[step], value) for step, value in zip(self.steps, self.values, strict=True) if step in known]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class Evaluation:
    """A score of a run's best checkpoint that ``evaluate.py`` left: on which images, with which weights and bound."""

    data: str
    split: str
    num_images: int
    weights: str
    num_noise_samples: int
    seed: int
    bits_per_dim: FiniteFloat


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    name: str
    config: dict[str, Any]
    results: dict[str, Any] | None
    curves: dict[str, Curve]
    num_epochs: int
    status: Status
    picture: Path | None
    evaluations: list[Evaluation]
    started: str | None
    commit: str | None
    host: str | None
    test_scores: dict[str, Tensor]
    """Of each test image: its ``group``, and its bits/dim by the weights; empty if they are not known."""

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def best_validation(self) -> float | None:
        """The lowest validation score so far, raw weights."""
        curve = self.curves.get("val/bits_per_dim")
        return min(curve.values) if curve else None

    def result(self, name: str) -> float | None:
        """A finite number out of the results."""
        return None if self.results is None else self.results.get(name)


@dataclass(frozen=True)
class Collection:
    """All runs that were found, named by their path below ``top``, and what was in the way."""

    top: Path
    runs: list[Run]
    problems: list[Problem]


def collect(places: Sequence[str]) -> Collection:
    """Read every run folder at or below some folders.

    Args:
        places: folders, or glob patterns for them.

    Raises:
        InputError: no run was found at all.
    """
    problems: list[Problem] = []
    folders: dict[Path, None] = {}
    for place in places:
        found = sorted(folder.resolve() for folder in _run_folders(place))
        if not found:
            problems.append(Problem(place, f"holds no run: no folder at or below it has a {CONFIG}"))
        folders |= dict.fromkeys(found)
    top = Path(os.path.commonpath([folder.parent for folder in folders])) if folders else Path()
    read = [_read_run(folder, str(folder.relative_to(top)), problems) for folder in folders]
    runs = [run for run in read if run is not None]
    if not runs:
        reasons = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:3])
        raise InputError(f"there is no run to report on ({reasons}): give runs=FOLDER with what train.py wrote")
    return Collection(top, runs, problems)


def _run_folders(place: str) -> Iterator[Path]:
    """Folders with a configuration; what lies inside one (W&B keeps a config.yaml of its own) is not another run."""
    for top in [place] if Path(place).exists() else glob.glob(place, recursive=True):
        for folder, subfolders, files in os.walk(top):
            if CONFIG in files:
                subfolders.clear()
                yield Path(folder)


def _read_run(folder: Path, name: str, problems: list[Problem]) -> Run | None:
    config = _read_config(folder / CONFIG, problems)
    if config is None:
        return None
    results = _read_results(folder / RESULTS, problems)
    curves = _read_metrics(folder / METRICS / "version_0" / METRICS_FILE, problems)
    epochs = curves.pop("epoch", None)
    pictures = [folder / SAMPLES / FINAL_SAMPLES, *sorted((folder / SAMPLES).glob("step=*.png"), reverse=True)]
    unfinished = Status.RUNNING if is_locked(folder) else Status.STOPPED
    return Run(
        folder=folder,
        name=name,
        config=config,
        results=results,
        curves=curves,
        num_epochs=0 if epochs is None else int(epochs.values[-1]) + 1,
        status=unfinished if results is None else Status.FINISHED,
        picture=next((path for path in pictures if path.exists()), None),
        evaluations=_read_evaluations(folder / EVALUATIONS, problems),
        test_scores=_read_test_scores(folder / TEST_SCORES, problems),
        **_read_origin(folder / LOCK),
    )


def _read_origin(path: Path) -> dict[str, str | None]:
    """When, from which commit and where a run began, or was resumed last, as far as its lock says."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    wanted = {"started": r" since ([-\d]+ [:\d]+)", "commit": r", commit (\S+)", "host": r" on (\S+)"}
    found = {name: re.search(pattern, text) for name, pattern in wanted.items()}
    return {name: match and match[1] for name, match in found.items()}


def _read_config(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        # Plain data, whatever it was: what refers to itself or is not JSON is refused here.
        config = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problems.append(Problem(str(path), f"cannot be read as a configuration ({first_line(error)}); run passed over"))
        return None
    wanted = {"model": dict, "data": dict, "trainer": dict, "optimizer": dict, "seed": int}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in wanted.items()):
        problems.append(Problem(str(path), "is not a configuration of train.py; run passed over"))
        return None
    return config


def _read_results(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The results, in which every number is finite; without a score there are no results."""
    if not path.exists():
        return None
    try:
        results = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problems.append(Problem(str(path), f"cannot be read ({first_line(error)}); the run counts as unfinished"))
        return None
    for key in [key for key, value in results.items() if isinstance(value, float) and not math.isfinite(value)]:
        problems.append(Problem(str(path), f"{key} is {results.pop(key)}, not a finite number; it is left out"))
    if SCORES["raw"] not in results:
        problems.append(Problem(str(path), f"has no {SCORES['raw']}; the run counts as unfinished"))
        return None
    return results


def _read_test_scores(path: Path, problems: list[Problem]) -> dict[str, Tensor]:
    """The columns of the table by their heads."""
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            heads = file.readline().strip().split(",")
            columns = torch.from_numpy(np.loadtxt(file, delimiter=",", ndmin=2).T)
        return dict(zip(heads, columns, strict=True))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(path), f"cannot be read ({first_line(error)}); differences lack their error"))
        return {}


def _read_evaluations(folder: Path, problems: list[Problem]) -> list[Evaluation]:
    evaluations = []
    for path in sorted(folder.glob("best-*.json")):
        try:
            evaluations.append(TypeAdapter(Evaluation).validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            problems.append(Problem(str(path), f"is not a whole evaluation ({first_line(error)}); left out"))
    return evaluations


def _read_metrics(path: Path, problems: list[Problem]) -> dict[str, Curve]:
    """The curves in a CSV file, as far as it is whole; a value that is not finite has no point on its curve."""
    points: dict[str, dict[int, float]] = {}
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            # A number at the end of a cut line may look whole and lack digits: what no newline ends does not count.
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                numbers = {name: float(text) for name, text in row.items() if text}
                step = int(numbers.pop("step"))
                for name, number in numbers.items():
                    if math.isfinite(number):
                        points.setdefault(name, {})[step] = number
    except (OSError, csv.Error, ValueError, TypeError, KeyError) as error:
        problems.append(Problem(str(path), f"cannot be read to its end ({first_line(error)}); the curves stop there"))
    return {name: Curve(sorted(at), [at[step] for step in sorted(at)]) for name, at in points.items()}
