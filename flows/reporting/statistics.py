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
    deviation: float | None
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Summarise some values; ``None`` if there are none."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def show(self, digits: int = DIGITS, sign: str = "") -> str:
        """``3.430 ± 0.004``, or ``3.430``; ``sign="+"`` for differences."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


def best(estimates: Sequence[Estimate | None]) -> list[bool]:
    """Which means are lowest, as far as the digits that are shown can tell; none, where fewer than two are known."""
    means = [None if estimate is None else round(estimate.mean, DIGITS) for estimate in estimates]
    known = [mean for mean in means if mean is not None]
    return [len(known) > 1 and mean == min(known) for mean in means]


def order(means: dict[str, float], digits: int) -> list[list[str]]:
    """Names by increasing mean; those that the shown digits do not tell apart stand together.

    >>> order({"a": 3.461, "b": 3.43, "c": 3.459}, digits=2)
    [['b'], ['a', 'c']]
    """
    levels: dict[float, list[str]] = {}
    for name, mean in means.items():
        levels.setdefault(round(mean, digits), []).append(name)
    return [sorted(levels[level]) for level in sorted(levels)]


def agreement(here: list[list[str]], expected: list[list[str]]) -> str:
    """Whether our order of some names bears out an expected one.

    Returns:
        ``yes`` if every pair that is expected in some order has it here; ``no`` if one has the opposite order;
        ``tied here`` if one has none; ``-`` if no order is expected.

    >>> agreement([["b"], ["c"], ["a"]], expected=[["b", "c"], ["a"]])
    'yes'
    """
    rank = {name: level for level, names in enumerate(here) for name in names}
    pairs = [
        (rank[first], rank[second])
        for level, names in enumerate(expected)
        for first in names
        for worse in expected[level + 1 :]
        for second in worse
    ]
    if not pairs:
        return "-"
    if any(first > second for first, second in pairs):
        return "no"
    return "tied here" if any(first == second for first, second in pairs) else "yes"
