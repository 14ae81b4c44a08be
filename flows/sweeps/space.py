"""Hydra's sweeps as the dimensions of a search."""

from __future__ import annotations

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from flows.errors import InputError, first_line


def dimension_of(override: Override) -> BaseDistribution:
    """The values among which an override searches.

    Raises:
        InputError: there are no such values, or they have no logarithm.
    """
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            assert low is not None and high is not None
            return FloatDistribution(low, high, log=is_log)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            low, high, step, is_log = values[0], values[-1], abs(sweep.step), "log" in sweep.tags
            if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
                return IntDistribution(low, high, log=is_log, step=step)
            return FloatDistribution(low, high, log=is_log, step=None if is_log else step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise InputError(f"{override.input_line!r} cannot be searched: {first_line(error)}") from error
