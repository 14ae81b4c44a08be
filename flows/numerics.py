"""Every numerical decision of the project, taken once.

* **Log-determinants are never less precise than float32.** They are sums over thousands of dimensions, and one bit
  lost there shows in the second decimal of a bits/dim. Should the activations be half precision, ``per_image_sum``
  accumulates in float32 all the same.
* **Small matrices are factorised in float64.** They are the matrix of a 1x1 convolution, the centre tap of an
  autoregressive one and the frequency matrices of a periodic one. They have a few hundred rows at most. So
  determinants and inverses cost nothing beside the convolutions, and decide how exact the round trip is.
* **What a network decides about a scale or a shift is bounded, by one function.** An affine layer inverts by dividing
  by a scale that a network reads off the activations. Without a bound, one activation that is too large makes the next
  one larger still, and within a few layers a sample overflows. ``bounded`` keeps every such answer in ``[-b, b]``.
* **One choice of precision, exact unless asked.** ``in_precision`` makes it: ``exact``, ``tf32`` or ``bf16``. Densities
  are computed in the choice around them, whatever torch's own switches and autocast say; without one they are exact.
* **Half precision is for networks alone.** With ``bf16`` those inside couplings and masked layers run under autocast.
  Their answers are float32 again before a scale or a shift is made of them. ``x``, scales, log-determinants, mixing
  layers and priors never are half precision: rounding there costs 0.02 bits/dim.
* **Encoding and decoding are exact whatever is chosen.** They run under ``full_precision``, so that
  ``decode(encode(x))`` is ``x``, pixel for pixel. Affine layers run in float64 there: their sums over channels and
  pixels lose ten times the digits that couplings do, and images unlike the data have none to spare.
* **Every score is exact.** Initialisation, validation and test run under ``full_precision`` too; training alone follows
  the user's choice, and ``evaluate.py`` where it is asked to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flows.errors import InputError

Precision = Literal["exact", "tf32", "bf16"]
"""``exact``: the tensors' own type. ``tf32``: float32 products and convolutions on GPUs keep 10 bits of the mantissa.
``bf16``: networks run in half precision, all else is exact."""

MAX_LOG_SCALE = 1.0
"""Default bound of a log-scale that a network predicts, in nats. docs/STABILITY.md has the measurements."""

SHARING_STEPS = 8
"""Number of steps per level up to which each has the whole bound of its log-scales; deeper levels share the sum."""

MAX_SHIFT = 4.0
"""Default bound of a shift that a network predicts. Activations have a size of about 1, so it rarely binds."""

MAX_INPUT = 8.0
"""Default bound of what a coupling's network sees. On images unlike the training data activations are far larger. There
a network's slope is arbitrary, and costs digits when the coupling is inverted."""

MAX_MASKED_INPUT, MAX_MASKED_LOG_SCALE = 2.0, 0.25
"""The bounds for masked autoregressive networks. Their inverse feeds each number into those after it, hundreds of
times, and so loses more digits. Bits/dim are the same."""

MARGIN = 0.1
"""Default distance by which an image may leave the pixels' range, whose length is 1."""

SCALE_OFFSET = 2.0
"""Added before the sigmoid of the paper's scales, so that a layer starts with the scale sigmoid(2) = 0.88."""


_chosen: Precision = "exact"
"""Of the process, as torch's switches are: a backward pass, on threads of its own, may compute something again."""


def require_precision(precision: str) -> None:
    """Refuse what is not a :data:`Precision`.

    Raises:
        InputError: naming those that there are.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, not '{precision}'")


@contextlib.contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in this precision on ``device``, forward and backward, whatever autocast and torch's switches say.

    Raises:
        InputError: another name.
    """
    global _chosen
    require_precision(precision)
    switches = _switches() if device.type == "cuda" else []
    before, before_of_switches = _chosen, [switch.fp32_precision for switch in switches]
    try:
        _chosen = precision
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _chosen = before
        for switch, previous in zip(switches, before_of_switches, strict=True):
            switch.fp32_precision = previous


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Compute exactly, whatever is chosen."""
    return in_precision("exact", device)


@contextlib.contextmanager
def scoring(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute a score: in this precision, and by what is not compiled, since each size of a batch would be anew."""
    with in_precision(precision, device), torch.compiler.set_stance("force_eager"):
        yield


def chosen_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Compute in the precision of the ``in_precision`` around, exactly if there is none."""
    return in_precision(_chosen, device)


def _switches() -> list[Any]:
    """Of matrix products and of convolutions on GPUs."""
    return [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]


def run_network(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``network(x)``, computed in the type that networks run in now, and returned in the type of ``x``."""
    if _chosen != "bf16":
        return network(x)
    # Not from a cache of weights, which lives as long as the outermost autocast: for many steps of the optimiser.
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
        return network(x).to(x.dtype)


def same_precision(device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Enters again, later and on any thread, the precision that ``device`` computes in now, autocast included."""
    precision = _chosen
    dtype, halves = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        # Without the cache of weights: one converted without autograd must not be found by what records.
        autocast = torch.autocast(device.type, dtype, enabled=halves, cache_enabled=False)
        with in_precision(precision, device), autocast:
            yield

    return enter


def bounded(h: Tensor, bound: float | None) -> Tensor:
    """``b tanh(h / b)``: smooth, odd, slope 1 at zero and at most 1 everywhere, values in ``[-b, b]``.

    Args:
        h: a network's output, any shape.
        bound: b, positive; ``None`` leaves ``h`` as it is.

    Reference: Behrmann et al., *Understanding and Mitigating Exploding Inverses in Invertible Neural Networks*, AISTATS
    2021, section 4.1.
    """
    return h if bound is None else bound * torch.tanh(h / bound)


def shared_bound(bound: float | None, num_steps: int) -> float | None:
    """The bound of one step's log-scales in a level of ``num_steps``: ``b min(1, 8 / D)``.

    The log-scales of a level then sum to ``8 b`` at most, whatever its depth. docs/STABILITY.md has the measurement.
    """
    return None if bound is None else bound * min(1.0, SHARING_STEPS / num_steps)


def require_bound(name: str, bound: float | None) -> None:
    """Refuse a bound that is not positive and finite.

    Raises:
        InputError: naming the argument.
    """
    if bound is not None and not 0 < bound < math.inf:
        raise InputError(f"{name} must be positive and finite, or null for no bound, not {bound}")


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is when it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_image_sum(x: Tensor) -> Tensor:
    """Sum over all but the first dimension: ``(B, ...) -> (B,)``, in float32 or better."""
    return at_least_float32(x).sum(dim=tuple(range(1, x.ndim)))


def same_for_every_image(log_det: Tensor, x: Tensor) -> Tensor:
    """A log-determinant that does not depend on the image: ``() -> (B,)``, in float32 or better."""
    return log_det.to(torch.promote_types(x.dtype, torch.float32)).expand(len(x))
