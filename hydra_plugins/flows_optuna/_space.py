"""Hydra's sweeps as the dimensions of a search."""

from __future__ import annotations

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from flows.errors import InputError, first_line


def dimension_of(override: Override) -> BaseDistribution:
    """What an override leaves to be searched.

    Raises:
        InputError: there is nothing in it, or no logarithm of it.
    """
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
            return kind(sweep.start, sweep.end, log="log" in sweep.tags)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
            return kind(values[0], values[-1], step=abs(sweep.step), log="log" in sweep.tags)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise InputError(f"{override.input_line!r} cannot be searched: {first_line(error)}") from error
