"""The paper's figures, and which of them belongs beside a row of ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import TypeAdapter

from flows.reporting.comparison import Row


@dataclass(frozen=True)
class PaperScore:
    """One figure of one of the paper's tables, in bits/dim."""

    table: int
    data: str
    mixing: str
    num_levels: tuple[int, ...]
    num_steps: int
    width: int
    mean: float
    std: float | None = None

    def show(self) -> str:
        """``3.43 ± 0.004 (table 4)``: both numbers as the paper prints them."""
        return f"{self.mean:.2f}{'' if self.std is None else f' ± {self.std:.3f}'} (table {self.table})"

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


@cache
def paper_scores() -> tuple[PaperScore, ...]:
    """The paper's own figures of tables 2, 3, 4 and 6."""
    text = files("flows.reporting").joinpath("paper.yaml").read_text("utf-8")
    return TypeAdapter(tuple[PaperScore, ...]).validate_python(yaml.safe_load(text))


def scores_beside(row: Row) -> list[PaperScore]:
    """The paper's figures for a row's configuration; more than one where two tables report it."""
    return [score for score in paper_scores() if score.belongs_to(row)]
