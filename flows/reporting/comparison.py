"""Which runs belong together, and what may be compared with what.

Runs of one configuration that differ in their seed alone are a *row*. Rows whose figures mean the same - the same
images of the same release and split, the same bits, the same bound - stand in one *comparison*; nothing else shares a
column. Inside it, rows that differ in nothing but mixing layer and width are a *block*: there, the best is marked.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flows.reporting.collect import SCORES, Collection, Problem, Run, Status
from flows.reporting.statistics import Estimate
from flows.runs.checkpoint import Weights
from flows.runs.resume import LOADING_KEYS

BUILT = ("model", "data", "optimizer", "schedule", "trainer", "callbacks", "precision")
"""The parts of a resolved configuration that become objects; the rest has gone into them, or is a seed, or a path."""

DATA_IDENTITY = ("_target_", "collection", "release", "splits", "root", "image_size", "num_channels")
"""Settings of the data that make other figures; those of a run without results are told apart by them."""

SHORT_NAMES = {
    "model.num_levels": "L",
    "model.num_steps": "D",
    "model.prior._target_": "prior",
    "trainer.max_epochs": "epochs",
    "data.batch_size": "batch",
    "data.images_per_epoch": "images an epoch",
    "optimizer.lr": "learning rate",
    "model.coupling._target_": "coupling",
}
"""What the settings are called that tell blocks apart, the most telling first."""

MIXING, WIDTH = "model.mixing.", "model.hidden_channels"
"""What the rows of a block may differ in."""

LAYERS = {
    "flows.layers.Conv1x1": "1x1",
    "flows.layers.EmergingConv2d": "emerging",
    "flows.layers.PeriodicConv2d": "periodic",
    "flows.layers.MaskedAutoregressiveFlow": "MAF",
    "flows.layers.MaCow": "MaCow",
    "flows.layers.Reverse": "reverse",
    "flows.layers.Shuffle": "shuffle",
    "flows.layers.AutoregressiveConv2d": "autoregressive",
    "flows.layers.Butterfly": "butterfly",
    "flows.layers.ConvExpConv2d": "convexp",
    "flows.layers.FIncConv2d": "finc",
    "flows.layers.Inverted": "inverted",
    "flows.layers.WoodburyConv2d": "Woodbury",
    "flows.layers.CirculantMatrix": "CD",
    "flows.layers.ExpMatrix": "expm",
    "flows.layers.OrthogonalMatrix": "orthogonal",
    "flows.layers.SVDMatrix": "SVD",
}

MAX_NAME = 40
"""Letters of a row's name; where one needs more, a letter of the alphabet stands for each row."""

BASELINE = "1x1"
"""The mixing layer that the others are compared with, seed by seed."""

Flat = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What bits/dim depend on besides the model: figures of different settings are not comparable."""

    data: str
    split: str
    num_images: int | None
    num_bits: int
    num_noise_samples: int
    selection_note: str

    def describe(self) -> str:
        """One line for above a table."""
        images = f", {self.num_images:,} images" if self.num_images is not None else ""
        bits = f"{self.num_bits} bits a pixel"
        noise = f"K = {self.num_noise_samples} draw{'' if self.num_noise_samples == 1 else 's'} of noise per image"
        selection = (self.selection_note or "The checkpoint is the best on the validation split").rstrip(".")
        return f"Data: {self.data}; split: {self.split}{images}; {bits}; {noise}. {selection}."


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one configuration, one for each seed."""

    setting: Setting
    config: Flat
    runs: list[Run]

    @cached_property
    def mixing(self) -> str:
        """The mixing layer in a few words: ``emerging 3x3``, ``1x1 PLU``."""
        node = self.runs[0].config["model"].get("mixing")
        return mixing_name(node if isinstance(node, dict) else {})

    @property
    def width(self) -> Any:
        return self.config.get(WIDTH)

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status is Status.FINISHED]

    def scores(self, weights: Weights) -> dict[int, float]:
        """Test bits/dim by seed."""
        found = {run.seed: run.result(SCORES[weights]) for run in self.finished}
        return {seed: score for seed, score in found.items() if score is not None}

    def estimate(self, weights: Weights) -> Estimate | None:
        """Test bits/dim over the seeds."""
        return Estimate.of([*self.scores(weights).values()])

    @property
    def folders(self) -> str:
        """Where its runs are: ``grid/seed=1 and 2 more``."""
        return self.runs[0].name + (f" and {len(self.runs) - 1} more" if len(self.runs) > 1 else "")

    def first_result(self, name: str) -> float | None:
        """A result that does not depend on the seed."""
        return next((value for run in self.finished if (value := run.result(name)) is not None), None)


@dataclass(frozen=True)
class Block:
    """Rows that differ in mixing layer and width alone, and what they have in common that others have not."""

    title: str
    rows: list[Row]
    is_comparable: bool = True

    @property
    def baseline(self) -> Row | None:
        """The row of the plain 1x1 convolution, if there is exactly one."""
        rows = [row for row in self.rows if row.mixing == BASELINE]
        return rows[0] if len(rows) == 1 and len(self.rows) > 1 and self.is_comparable else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows of one setting.

    Args:
        usual: the settings of most rows, where rows differ.
        unusual: of each row, the settings that are others.
    """

    setting: Setting
    blocks: list[Block]
    titles: dict[Row, str] = field(repr=False)
    usual: str
    unusual: dict[Row, str] = field(repr=False)

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block.rows]


def compare(collection: Collection) -> list[Comparison]:
    """Sort all runs into rows, blocks and comparisons; what does not fit together is added to the problems."""
    rows: dict[tuple[Setting, str], Row] = {}
    settings = _settings(collection.runs)
    for run, setting in zip(collection.runs, settings, strict=True):
        config = comparable(run.config)
        row = rows.setdefault((setting, json.dumps(config, sort_keys=True)), Row(setting, config, []))
        row.runs.append(run)
    for row in rows.values():
        _keep_one_run_a_seed(row, collection.problems)
    by_setting: dict[Setting, list[Row]] = {}
    for (setting, _), row in rows.items():
        by_setting.setdefault(setting, []).append(row)
    for setting, its_rows in by_setting.items():
        _check_codecs(setting, its_rows, collection.problems)
    return [_comparison(setting, its_rows) for setting, its_rows in sorted(by_setting.items(), key=lambda i: str(i[0]))]


def comparable(config: Mapping[str, Any]) -> Flat:
    """A configuration as dotted keys, without what says where and as which repetition it ran."""
    run_dir = config.get("run_dir")
    kept = {key: config[key] for key in BUILT if key in config}
    kept["model"] = {key: value for key, value in config["model"].items() if key != "memory"}
    kept["data"] = {key: value for key, value in config["data"].items() if key not in LOADING_KEYS}
    flat = {key: value for key, value in _flatten("", kept) if key.split(".")[-1] != "seed"}
    return {key: value for key, value in flat.items() if not (run_dir and str(value).startswith(str(run_dir)))}


def _flatten(prefix: str, node: Any) -> Sequence[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        return [(prefix, node)]
    return [item for key, value in node.items() for item in _flatten(f"{prefix}.{key}" if prefix else str(key), value)]


def mixing_name(node: Mapping[str, Any]) -> str:
    """A short name for the mixing layer that a configuration describes.

    >>> mixing_name({"_target_": "flows.layers.EmergingConv2d", "kernel_size": 5, "dilation": 2, "mask": "square"})
    'emerging 5x5, dilation 2'
    >>> matrix = {"_target_": "flows.layers.OrthogonalMatrix", "orthogonal_map": "expm"}
    >>> mixing_name({"_target_": "flows.layers.Conv1x1", "parametrization": matrix})
    '1x1, orthogonal, orthogonal_map expm'
    >>> mixing_name({"_target_": "flows.layers.MaskedAutoregressiveFlow", "max_log_scale": None})
    'MAF, no max log scale'
    """
    target = str(node.get("_target_", "unknown"))
    name = LAYERS.get(target, target.rpartition(".")[2])
    if "kernel_size" in node:
        name += f" {node['kernel_size']}x{node['kernel_size']}"
    parametrization = node.get("parametrization", "plain")
    if parametrization != "plain" and not isinstance(parametrization, Mapping):
        name += f" {parametrization.upper()}"
    parts = [mixing_name(value) for value in node.values() if isinstance(value, Mapping)]
    said = ("kernel_size", "parametrization")
    extras = {key: value for key, value in node.items() if not key.startswith("_") and key not in said}
    usual = _settings_of_its_own(target)
    unusual = [
        f"no {key.replace('_', ' ')}" if value is None else f"{key} {value}"
        for key, value in extras.items()
        if value != usual.get(key) and not isinstance(value, Mapping)
    ]
    return ", ".join([name, *parts, *unusual])


def _settings_of_its_own(target: str) -> dict[str, Any]:
    """What a layer of ours is unless told otherwise, which goes without saying."""
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters if target in LAYERS else {}
    return {name: parameter.default for name, parameter in parameters.items()}


def differing_keys(rows: Sequence[Row]) -> list[str]:
    """The dotted keys in which some rows differ; a key that one of them lacks is one."""
    keys = dict.fromkeys(key for row in rows for key in row.config)
    return [key for key in keys if len({_as_text(row.config, key) for row in rows}) > 1]


def _telling_keys(rows: Sequence[Row]) -> list[str]:
    """Those of them that belong neither to the layer nor to the width."""
    return [key for key in differing_keys(rows) if not key.startswith(MIXING) and key != WIDTH]


def _as_text(config: Flat, key: str) -> str:
    return json.dumps(config[key]) if key in config else "absent"


def _settings(runs: Sequence[Run]) -> list[Setting]:
    """The setting of each run; a run without results shares that of a finished one on the same data."""
    known: dict[str, Setting] = {}
    for run in runs:
        if run.results is not None:
            known.setdefault(_data_identity(run), _setting(run))
    return [_setting(run) if run.results is not None else known.get(_data_identity(run), _setting(run)) for run in runs]


def _setting(run: Run) -> Setting:
    results = run.results or {}
    return Setting(
        data=results.get("data") or _name_of_data(run),
        split=results.get("split", "test"),
        num_images=results.get("num_images"),
        num_bits=_num_bits(run),
        num_noise_samples=results.get("num_noise_samples", 1),
        selection_note=results.get("selection_note") or "",
    )


def _data_identity(run: Run) -> str:
    return json.dumps([_num_bits(run), *(run.config["data"].get(key) for key in DATA_IDENTITY)])


def _name_of_data(run: Run) -> str:
    data = run.config["data"]
    return str(data.get("collection") or str(data.get("_target_", "unknown")).rpartition(".")[2])


def _num_bits(run: Run) -> int:
    return int(run.config["model"].get("dequantizer", {}).get("num_bits", 8))


def _keep_one_run_a_seed(row: Row, problems: list[Problem]) -> None:
    """Of two runs with the same configuration and seed, one counts: the finished one, else the first."""
    kept: dict[int, Run] = {}
    for run in sorted(row.runs, key=lambda run: run.status is not Status.FINISHED):
        if run.seed in kept:
            what = f"repeats seed {run.seed} of the configuration in {kept[run.seed].name}, and is not counted"
            problems.append(Problem(run.name, what))
        else:
            kept[run.seed] = run
    row.runs[:] = [kept[seed] for seed in sorted(kept)]


def _check_codecs(setting: Setting, rows: Sequence[Row], problems: list[Problem]) -> None:
    for codec in ("png", "webp"):
        results = (run.result(f"test/{codec}_bits_per_dim") for row in rows for run in row.finished)
        found = sorted({round(value, 6) for value in results if value is not None})
        if len(found) > 1:
            what = f"{codec} needs from {found[0]:.4f} to {found[-1]:.4f} bits/dim: these are not the same images"
            problems.append(Problem(setting.data, f"{what}, or not the same codec"))


def _comparison(setting: Setting, rows: list[Row]) -> Comparison:
    keys = _distinguishing_keys(rows)
    rows = sorted(rows, key=lambda row: _sort_key(row, keys))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_title(row.config, keys), []).append(row)
    shared = [group for group in groups.values() if len(group) > 1]
    alone = [row for group in groups.values() if len(group) == 1 for row in group]
    usual = _usual(rows)
    blocks = [Block(_block_title(group[0], keys, usual), group) for group in shared]
    if alone:  # where nothing else is there, a sweep over something else: one list
        blocks.append(Block("each with settings of its own" if shared else "", alone, is_comparable=not shared))
    ordered = [row for block in blocks for row in block.rows]
    most = _title(usual, [key for key, value in usual.items() if value is not None])
    unusual = {row: _unusual(row, _telling_keys(rows), usual) for row in rows}
    return Comparison(setting, blocks, _titles(ordered, keys), most, unusual)


def _usual(rows: Sequence[Row]) -> Flat:
    """Of the settings in which rows differ, the values that more than half of them have."""
    usual = {}
    for key in _telling_keys(rows):
        ((text, count),) = Counter(_as_text(row.config, key) for row in rows).most_common(1)
        if 2 * count > len(rows) and text != "absent":
            usual[key] = json.loads(text)
    return usual


def _unusual(row: Row, keys: Sequence[str], usual: Flat) -> str:
    """What a row has that is not usual; what it lacks goes without saying, since something else stands in its place."""
    return _title(row.config, [key for key in keys if _as_text(row.config, key) != _as_text(usual, key)])


def _block_title(row: Row, keys: Sequence[str], usual: Flat) -> str:
    title = _title(row.config, keys)
    return title if len(title) <= MAX_NAME else _unusual(row, keys, usual) or "the usual settings"


def _distinguishing_keys(rows: Sequence[Row]) -> list[str]:
    """As few keys besides layer and width, the most telling first, as tell the rows apart as well as all of them do."""
    known = [*SHORT_NAMES]
    keys = _telling_keys(rows)
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: known.index(key) if key in known else len(known)):
        if len({_title(row.config, [*chosen, key]) for row in rows}) > len(
            {_title(row.config, chosen) for row in rows}
        ):
            chosen.append(key)
    return chosen


def _sort_key(row: Row, keys: Sequence[str]) -> tuple:
    """Deeper models first, as in the paper; layers in the paper's order."""
    values = [row.config.get(key) for key in keys]
    numbers = [-value if isinstance(value, (int, float)) else 0 for value in values]
    known = [*LAYERS.values()]
    first_word = row.mixing.split(" ")[0].rstrip(",")
    place = known.index(first_word) if first_word in known else len(known)
    return (numbers, [str(value) for value in values], place, row.mixing, str(row.width))


def _title(config: Flat, keys: Sequence[str]) -> str:
    return ", ".join(f"{SHORT_NAMES.get(key, key)} {_show(config[key])}" for key in keys if key in config)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"  # 0.0003, not 0.00030000000000000003
    return value if isinstance(value, str) else json.dumps(value)


def _titles(rows: Sequence[Row], keys: Sequence[str]) -> dict[Row, str]:
    """A short name for each row that no other row of its comparison has."""
    names = {row: ", ".join(filter(None, [row.mixing, _title(row.config, keys)])) for row in rows}
    taken = [*names.values()]
    names = {row: name if taken.count(name) == 1 else f"{name}, width {row.width}" for row, name in names.items()}
    if len({*names.values()}) == len(rows) and max(map(len, names.values())) <= MAX_NAME:
        return names
    alphabet = string.ascii_uppercase
    return {
        row: f"{alphabet[number % 26] * (number // 26 + 1)} {row.mixing.partition(',')[0]}"[:MAX_NAME]
        for number, row in enumerate(rows)
    }
