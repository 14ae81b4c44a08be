"""The paper's figures, and which of them belongs beside a row of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from flows.reporting.comparison import Row
from flows.reporting.statistics import order

PAPER_DIGITS = 2
"""Decimals of the paper's bits/dim."""


@dataclass(frozen=True)
class PaperScore:
    """One figure of one of the paper's tables, in bits/dim."""

    table: int
    data: str
    mixing: str
    num_levels: tuple[int, ...]
    num_steps: int | None
    width: int | None
    mean: float
    deviation: float | None

    @property
    def data_name(self) -> str:
        """The data set as the paper calls it."""
        return str(_read()["names"][self.data])

    @property
    def architecture(self) -> str:
        if self.num_steps is None:
            return "as published"
        return f"L {' or '.join(map(str, self.num_levels))}, D {self.num_steps}, width {self.width}"

    def show(self) -> str:
        """``3.43 ± 0.004``: both as the paper prints them."""
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")

    def belongs_to(self, row: Row) -> bool:
        """Whether a row has the same data, of the same release, in the same bits, and the same architecture."""
        setting, config = row.setting, row.config
        return (
            setting.data.partition(" (")[0] == self.data
            and (setting.num_bits, setting.num_noise_samples) == (8, 1)
            and row.mixing == self.mixing
            and config.get("model.num_levels") in self.num_levels
            and config.get("model.num_steps") == self.num_steps
            and row.width == self.width
        )


@dataclass(frozen=True)
class PaperSampling:
    """One line of the paper's table 5: bits/dim, and milliseconds an image."""

    mixing: str
    mean: float
    naive: float
    accelerated: float


@dataclass(frozen=True)
class PaperOrder:
    """The paper's order of some mixing layers, and where it stands."""

    levels: list[list[str]]
    sources: list[str]


@cache
def paper_scores() -> tuple[PaperScore, ...]:
    """Every figure of tables 2, 3, 4 and 6."""
    return tuple(
        PaperScore(
            table=line["table"],
            data=line["data"],
            mixing=line["mixing"],
            num_levels=tuple(line["L"]),
            num_steps=line["D"],
            width=line["width"],
            mean=line["mean"],
            deviation=line["sd"],
        )
        for line in _read()["scores"]
    )


@cache
def paper_sampling() -> tuple[PaperSampling, ...]:
    """Table 5."""
    return tuple(
        PaperSampling(line["mixing"], line["mean"], line["naive"], line["accelerated"]) for line in _read()["sampling"]
    )


def scores_beside(row: Row) -> list[PaperScore]:
    """The paper's figures for a row's configuration; more than one where two tables report it."""
    return [score for score in paper_scores() if score.belongs_to(row)]


def orders_of(mixings: Iterable[str]) -> list[PaperOrder]:
    """How the paper orders some mixing layers, wherever it compares at least two of them.

    Where it compares fewer of them than elsewhere, it is left out; places that find the same order share an entry.
    """
    mixings = set(mixings)
    groups: dict[tuple[int, str, int | None], dict[str, float]] = {}
    for score in paper_scores():
        if score.mixing in mixings:
            groups.setdefault((score.table, score.data_name, score.num_steps), {})[score.mixing] = score.mean
    orders: list[PaperOrder] = []
    for (table, data, num_steps), means in groups.items():
        if len(means) < 2 or any(means.keys() < others.keys() for others in groups.values()):
            continue
        levels = order(means, PAPER_DIGITS)
        values = ", ".join(f"{means[name]:.2f}" for level in levels for name in level)
        source = f"table {table} ({data}, D {num_steps}): {values}"
        known = next((found for found in orders if found.levels == levels), None)
        if known is None:
            orders.append(PaperOrder(levels, [source]))
        else:
            known.sources.append(source)
    return orders


@cache
def _read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(files("flows.reporting").joinpath("paper.yaml").read_text("utf-8"))
    return content
