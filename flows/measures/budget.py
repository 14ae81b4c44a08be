"""Models of equal cost: the width at which a flow has as many parameters as another one, or takes as long.

Mixing layers differ in their number of parameters, so that a comparison at equal width favours the larger ones. Every
weight of a coupling network lies between two layers whose widths are fixed or ``hidden_channels``. The number of
parameters is therefore a polynomial of degree two in the width, and three small models determine it for every width.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import nn

from flows.errors import InputError
from flows.measures.diagnostics import count_parameters

MAX_MEASUREMENTS = 8
"""Of a search for the width of equal time."""


class ParameterCount(NamedTuple):
    """``constant + linear * width + quadratic * width^2``, in units of half a parameter."""

    constant: int
    linear: int
    quadratic: int

    @classmethod
    def of(cls, make_model: Callable[[int], nn.Module]) -> ParameterCount:
        """Count the free parameters (entries that a mask holds at zero are none) of ``make_model(width)``.

        Args:
            make_model: makes a model from its width; called for widths 1 to 4.

        Raises:
            InputError: the number is no such polynomial.
        """
        one, two, three, four = (count_parameters(make_model(width)) for width in (1, 2, 3, 4))
        quadratic = three - 2 * two + one  # twice the coefficient, which may be a half
        linear = 2 * (two - one) - 3 * quadratic
        count = cls(2 * one - linear - quadratic, linear, quadratic)
        if count(4) != four:
            raise InputError("the number of parameters of this model is no quadratic polynomial of hidden_channels")
        return count

    def __call__(self, width: int) -> int:
        return (self.constant + self.linear * width + self.quadratic * width**2) // 2

    def width_for(self, budget: int) -> int:
        """The width whose number of parameters is nearest to ``budget``; of two equally near ones the smaller.

        Raises:
            InputError: even the smallest model has more than that, or the width does not change the number.
        """
        if self(1) > budget:
            raise InputError(
                f"no width has {budget:,} parameters: this model has {self(1):,} at width 1; choose a larger budget, "
                f"or fewer or smaller mixing layers"
            )
        if self(2) <= self(1):
            raise InputError("the number of parameters of this model does not grow with hidden_channels")
        above = bisect.bisect_right(range(2**62), budget, lo=1, key=self.__call__)
        return min((above - 1, above), key=lambda width: abs(self(width) - budget))


def width_of_equal_time(ratio_at: Callable[[int], float], guess: int, tolerance: float) -> int | None:
    """The width at which a model takes as long as a reference, to within ``tolerance``.

    Time grows with the width, about as a polynomial of degree two. One is fitted to all measurements, those near the
    reference's time counting most, and says where to measure next: one measurement that other programs disturb does
    not mislead it for long. Where time grows in jumps, the best width of eight is found.

    Args:
        ratio_at: measures the time at a width, divided by the reference's. Called about four times, at most eight.
        guess: where to begin, such as the reference's width.
        tolerance: how far from 1 a ratio may be.

    Returns:
        ``None`` if the model takes longer even at width 1.
    """
    ratios: dict[int, float] = {1: ratio_at(1)}
    if ratios[1] > 1 + tolerance:
        return None
    width = max(guess, 2)
    while len(ratios) < MAX_MEASUREMENTS and width not in ratios:
        ratios[width] = ratio_at(width)
        if abs(ratios[width] - 1) <= tolerance:
            break
        if max(ratios.values()) < 1:
            width *= 2
        elif len(ratios) == 2:
            width = (1 + width) // 2
        else:
            weights = [1 / (tolerance + abs(ratio - 1)) for ratio in ratios.values()]
            parabola = np.poly1d(np.polyfit([*ratios], [*ratios.values()], 2, w=weights))
            above = bisect.bisect_left(range(max(ratios)), 1.0, lo=2, key=parabola)
            width = min((above - 1, above), key=lambda width: abs(parabola(width) - 1))
    return min(ratios, key=lambda width: abs(ratios[width] - 1))
