"""What is in some run folders, finished, running or dead; whatever cannot be read is named and passed over."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from flows.errors import InputError, first_line
from flows.runs.checkpoint import Weights
from flows.runs.layout import CHECKPOINTS, CONFIG, EVALUATIONS, FINAL_SAMPLES, METRICS, METRICS_FILE, RESULTS, SAMPLES

"""Where a run keeps its CSV file; with Lightning's own logger, one in a folder for each time that it was started."""

SECONDS_OF_SILENCE = 15 * 60
"""A run without results that has written nothing for so long is taken for dead."""

RAW, AVERAGED = "test/bits_per_dim", "test/bits_per_dim_averaged"
"""The scores that results hold, by the weights that they are of."""

NOT_FINITE: dict[Weights, str] = {"raw": "samples_not_finite", "averaged": "samples_not_finite_averaged"}
"""How many of a run's ``num_samples`` samples at temperature 1 overflow, by the weights that draw them."""


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


@dataclass(frozen=True)
class Curve:
    """A metric over training, by increasing optimiser step."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Evaluation:
    """A score of a run's best checkpoint that ``evaluate.py`` left: on which images, with which weights and bound."""

    data: str
    split: str
    num_images: int
    weights: str
    num_noise_samples: int
    seed: int
    bits_per_dim: float


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    name: str
    config: dict[str, Any]
    results: dict[str, Any] | None
    curves: dict[str, Curve]
    last_epoch: int | None
    last_step: int | None
    status: Status
    minutes_silent: float
    picture: Path | None
    evaluations: list[Evaluation]

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


@dataclass
class Collection:
    """All runs that were found, named by their path below ``top``, and what was in the way."""

    top: Path = Path()
    runs: list[Run] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def collect(places: Sequence[str], now: float | None = None) -> Collection:
    """Read every run folder at or below some folders.

    Args:
        places: folders, or glob patterns for them.
        now: seconds since the epoch; the present, if not given.

    Raises:
        InputError: no run was found at all.
    """
    now = time.time() if now is None else now
    collection = Collection()
    seen: set[Path] = set()
    for place in places:
        folders = sorted(_run_folders(place, collection.problems))
        if not folders:
            collection.problems.append(Problem(place, f"holds no run: no folder at or below it has a {CONFIG}"))
        for folder in folders:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                run = _read_run(folder, now, collection.problems)
                if run is not None:
                    collection.runs.append(run)
    if not collection.runs:
        reasons = "; ".join(f"{problem.where}: {problem.what}" for problem in collection.problems[:3])
        raise InputError(f"there is no run to report on ({reasons}): give runs=FOLDER with what train.py wrote")
    collection.top = Path(os.path.commonpath([run.folder.absolute().parent for run in collection.runs]))
    collection.runs = [
        replace(run, name=str(run.folder.absolute().relative_to(collection.top))) for run in collection.runs
    ]
    return collection


def _run_folders(place: str, problems: list[Problem]) -> Iterator[Path]:
    """Folders with a configuration; what lies inside one (W&B keeps a config.yaml of its own) is no other run."""
    tops = [place] if Path(place).exists() else glob.glob(place, recursive=True)
    for top in tops:
        errors: list[OSError] = []
        for folder, subfolders, files in os.walk(top, onerror=errors.append):
            if CONFIG in files:
                subfolders.clear()
                yield Path(folder)
        problems.extend(Problem(str(error.filename), f"cannot be read ({error.strerror})") for error in errors)


def _read_run(folder: Path, now: float, problems: list[Problem]) -> Run | None:
    name = str(folder)
    config = _read_config(folder / CONFIG, problems)
    if config is None:
        return None
    results = _read_results(folder / RESULTS, problems)
    curves, last_epoch, last_step = _read_metrics(folder / METRICS, problems)
    if results is not None and isinstance(results.get("steps"), int) and (last_step or 0) > results["steps"]:
        problems.append(
            Problem(name, f"went on to step {last_step} after its results, which are those of step {results['steps']}")
        )
    silence = now - _last_sign_of_life(folder)
    status = Status.STOPPED if silence > SECONDS_OF_SILENCE else Status.RUNNING
    return Run(
        folder=folder,
        name=name,
        config=config,
        results=results,
        curves=curves,
        last_epoch=last_epoch,
        last_step=last_step,
        status=status if results is None else Status.FINISHED,
        minutes_silent=silence / 60,
        picture=_newest_picture(folder / SAMPLES, problems),
        evaluations=_read_evaluations(folder / EVALUATIONS, problems),
    )


def _read_config(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
        # Plain data, whatever it was: what refers to itself or is no JSON is refused here.
        config = json.loads(json.dumps(yaml.safe_load(text)))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problems.append(Problem(str(path), f"cannot be read as a configuration ({first_line(error)}); run passed over"))
        return None
    if config is None:
        problems.append(Problem(str(path), "is empty: the run never started; passed over"))
        return None
    wanted = {"model": dict, "data": dict, "trainer": dict, "optimizer": dict, "seed": int}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in wanted.items()):
        problems.append(Problem(str(path), "is not a configuration of train.py; run passed over"))
        return None
    return config


def _read_results(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The results with every score a finite number; without a score there are no results."""
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Problem(str(path), f"cannot be read ({first_line(error)}); the run counts as unfinished"))
        return None
    if not isinstance(results, dict):
        problems.append(Problem(str(path), "is not an object of results; the run counts as unfinished"))
        return None
    for key in [key for key, value in results.items() if _is_quantity(key) and not _is_finite(value)]:
        problems.append(Problem(str(path), f"{key} is {results.pop(key)!r}, not a finite number; it is left out"))
    if RAW not in results:
        problems.append(Problem(str(path), f"has no {RAW}; the run counts as unfinished"))
        return None
    return results


def _read_evaluations(folder: Path, problems: list[Problem]) -> list[Evaluation]:
    evaluations = []
    wanted = TypeAdapter(Evaluation)
    for path in sorted(folder.glob("best-*.json")):
        try:
            evaluation = wanted.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            problems.append(Problem(str(path), f"is not a whole evaluation ({first_line(error)}); left out"))
            continue
        if math.isfinite(evaluation.bits_per_dim):
            evaluations.append(evaluation)
        else:
            problems.append(Problem(str(path), f"bits_per_dim is {evaluation.bits_per_dim}; left out"))
    return evaluations


def _is_quantity(key: str) -> bool:
    return key.startswith("test/") or key in (
        "num_parameters",
        "seconds",
        "steps",
        "num_images",
        "num_noise_samples",
        "num_samples",
        *NOT_FINITE.values(),
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_metrics(folder: Path, problems: list[Problem]) -> tuple[dict[str, Curve], int | None, int | None]:
    """The curves of all versions, last epoch and last step.

    With Lightning's own logger a resumed run writes a version of its own, and may go over steps again that the version
    before it had logged after its last checkpoint; those are dropped there.
    """
    points: dict[str, dict[int, float]] = {}
    last_epoch: int | None = None
    for path in sorted(folder.glob(f"version_*/{METRICS_FILE}"), key=_version):
        rows = list(_metric_rows(path, problems))
        first_step = min((int(row["step"]) for row in rows), default=None)
        if first_step is not None:
            points = {
                name: {step: value for step, value in values.items() if step < first_step}
                for name, values in points.items()
            }
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    points.setdefault(name, {})[int(row["step"])] = value
            if "epoch" in row:
                last_epoch = int(row["epoch"])
    curves = {name: Curve(sorted(at), [at[step] for step in sorted(at)]) for name, at in points.items() if at}
    return curves, last_epoch, max((curve.steps[-1] for curve in curves.values()), default=None)


def _version(path: Path) -> int:
    number = re.fullmatch(r"version_(\d+)", path.parent.name)
    return int(number[1]) if number else -1


def _metric_rows(path: Path, problems: list[Problem]) -> Iterator[Mapping[str, float]]:
    """The lines of a CSV file as numbers by name, as far as it is whole."""
    num_bad = 0
    try:
        # A number at the end of a cut line may look whole and lack digits: what no newline ends does not count.
        text, _, cut = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        rows = csv.reader(io.StringIO(text))
        header = next(rows, [])
        if "step" not in header:
            problems.append(Problem(str(path), "is empty or has no column 'step'; it gives no curves"))
            return
        num_bad += bool(cut)
        for row in rows:
            numbers = _numbers(header, row)
            if numbers is None:
                num_bad += 1
            else:
                yield numbers
    except (OSError, csv.Error) as error:
        problems.append(Problem(str(path), f"cannot be read to its end ({first_line(error)}); the curves stop there"))
    if num_bad:
        lines = "a line that is" if num_bad == 1 else f"{num_bad} lines that are"
        problems.append(Problem(str(path), f"has {lines} cut off or not made of numbers; left out"))


def _numbers(header: list[str], row: list[str]) -> Mapping[str, float] | None:
    """One line; ``None`` if it is not whole. A metric that became NaN or infinite has no point on its curve."""
    if len(row) != len(header):
        return None
    try:
        numbers = {name: float(text) for name, text in zip(header, row, strict=True) if text}
    except ValueError:
        return None
    numbers = {name: number for name, number in numbers.items() if math.isfinite(number)}
    return numbers if "step" in numbers else None


def _last_sign_of_life(folder: Path) -> float:
    files = [folder / CONFIG, *folder.glob(f"{METRICS}/version_*/*"), *folder.glob(f"{CHECKPOINTS}/*")]
    times = [path.stat().st_mtime for path in files if path.exists()]
    return max(times, default=0.0)


def _newest_picture(folder: Path, problems: list[Problem]) -> Path | None:
    """The last picture of samples that is whole: of the best checkpoint, if the run came so far."""
    for path in [folder / FINAL_SAMPLES, *sorted(folder.glob("step=*.png"), reverse=True)]:
        if path.exists():
            try:
                with Image.open(path, formats=["PNG"]) as picture:
                    picture.load()
                return path
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                problems.append(Problem(str(path), f"is not a whole PNG ({first_line(error)}); left out"))
    return None
