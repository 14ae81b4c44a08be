"""Means over seeds, and which of them is best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = 3
"""Decimals of bits/dim that are shown."""


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

    @property
    def squared_error(self) -> float | None:
        """The square of the mean's standard error; nobody knows that of a single seed."""
        return None if self.std is None else self.std**2 / self.num

    @property
    def verdict(self) -> str:
        """What a difference of scores says, where its error is known."""
        if self.squared_error is None:
            return ""
        if not _is_beyond(self.mean, self.squared_error):
            return ", within the error"
        return ", better" if self.mean < 0 else ", worse"

    def show(self, sign: str = "") -> str:
        """``3.430 ± 0.004``, or ``3.430``; ``sign="+"`` for differences."""
        mean = f"{self.mean:{sign}.{DIGITS}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{DIGITS}f}"


def best(estimates: Sequence[Estimate | None]) -> list[bool]:
    """Which means are lowest, as far as their errors can tell; a single seed is never known to be."""
    errors = [None if one is None else one.squared_error for one in estimates]
    known = [(one.mean, error) for one, error in zip(estimates, errors, strict=True) if one and error is not None]
    if len(known) < 2:
        return [False] * len(estimates)
    mean, least = min(known)
    return [
        one is not None and error is not None and not _is_beyond(one.mean - mean, error + least)
        for one, error in zip(estimates, errors, strict=True)
    ]


def _is_beyond(difference: float, squared_error: float) -> bool:
    """Whether a difference exceeds twice its standard error."""
    return difference**2 > 4 * squared_error
