"""Learning rates over a training: any of torch's schedules by its name in the configuration, and these.

A schedule of this project multiplies the optimiser's rates by a factor that depends on the number of steps made, and
on nothing else: a resumed training goes on exactly.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flows.errors import InputError

ScheduleFactory = Callable[[Optimizer], LRScheduler]


def planned(factory: Callable[..., LRScheduler], total_steps: int | float) -> ScheduleFactory:
    """A schedule's factory that knows how many steps the trainer plans, if it asks for ``total_steps``."""
    asks = "total_steps" in inspect.signature(factory).parameters
    return partial(factory, total_steps=total_steps) if asks else factory


class WarmUp(LRScheduler):
    """Multiplies the rate by ``(t + 1) / (W + 1)`` at the first W steps, ``t = 0, 1, ...``, and leaves it then.

    Args:
        optimizer: whose rates are set.
        warmup_steps: W, at least 0.

    Raises:
        InputError: a negative number of steps.

    Reference: section 5 of the paper, with a warm-up of ten epochs.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0) -> None:
        if warmup_steps < 0:
            raise InputError(f"schedule.warmup_steps must be at least 0, not {warmup_steps}")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The factor at a step, the first being 0."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))

    def get_lr(self) -> list[float | Tensor]:
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


class CosineDecay(WarmUp):
    """A :class:`WarmUp`, then half a cosine from 1 to 0: ``(1 + cos(pi (t - W) / (N - W))) / 2``.

    N, the horizon, is stored in the checkpoints. A resumed training keeps it, whatever the trainer then plans: the
    rate at a step must not depend on where the training was interrupted. A training shorter than W only warms up.

    Args:
        optimizer: whose rates are set.
        total_steps: that the trainer plans, or infinity.
        warmup_steps: W, at least 0.
        num_steps: N; ``None`` takes ``total_steps``, or the stored horizon of the run that goes on.

    Raises:
        InputError: no finite horizon, or one before the end of the training, whose remaining steps would have rate 0.

    Reference: Loshchilov & Hutter, *SGDR*, ICLR 2017, equation 5.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | float, warmup_steps: int = 0, num_steps: int | None = None
    ) -> None:
        self._planned, self._is_given = total_steps, num_steps is not None
        self.num_steps = total_steps if num_steps is None else num_steps
        if not self.num_steps < math.inf:
            raise InputError("the training has no end that the cosine could reach: give schedule.num_steps")
        self._require_horizon()
        super().__init__(optimizer, warmup_steps)

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return super().factor(step)
        way = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(way, 1.0)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {"_planned", "_is_given", *(["num_steps"] if self._is_given else [])}
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in own})
        self._require_horizon()

    def _require_horizon(self) -> None:
        if self.num_steps < self._planned < math.inf:
            raise InputError(
                f"the cosine ends at step {self.num_steps}, the training at step {self._planned}: "
                f"schedule.num_steps={self._planned} stretches the cosine, trainer.max_epochs shortens the training"
            )
