"""Means over seeds, and which of them is best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = 3
"""Decimals of bits/dim that are shown, and that decide on a tie."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``num`` seeds with the sample standard deviation (n - 1), which a single seed does not have."""

    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Summarise some values; ``None`` if there are none."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def show(self, sign: str = "") -> str:
        """``3.430 ± 0.004``, or ``3.430``; ``sign="+"`` for differences."""
        mean = f"{self.mean:{sign}.{DIGITS}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{DIGITS}f}"


def best(estimates: Sequence[Estimate | None]) -> list[bool]:
    """Which means are lowest, as far as the digits that are shown can tell; none, where fewer than two are known."""
    means = [None if estimate is None else round(estimate.mean, DIGITS) for estimate in estimates]
    known = [mean for mean in means if mean is not None]
    return [len(known) > 1 and mean == min(known) for mean in means]
