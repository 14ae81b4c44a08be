"""Models of equal size: the width at which a flow has as many parameters as another one.

Mixing layers differ in their number of parameters, so that a comparison at equal width favours the larger ones. Every
weight of a coupling network lies between two layers whose widths are fixed or ``hidden_channels``. The number of
parameters is therefore a polynomial of degree two in the width, and three small models determine it for every width.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from flows.errors import InputError
from flows.measures.diagnostics import count_parameters


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
