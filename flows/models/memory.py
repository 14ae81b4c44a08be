"""How much of a forward pass is kept for the backward pass: all of it, the inputs of the steps, or next to nothing.

Autograd keeps what every layer computes, and a coupling's network computes a hundred times as many numbers as the step
of flow passes on. Each mode but ``store`` keeps none of that: the backward pass runs a layer again just before it needs
what the layer computed. The modes differ in how the layer's input is known there:

* ``recompute`` keeps the input of each step of flow. Gradients are those of ``store``, bit for bit; to rounding with
  :class:`flows.layers.Inverted`, whose solver is another one without autograd.
* ``invert`` keeps the output of a level and the input of every eighth step, and goes back from there: couplings and
  pixelwise layers are inverted one by one. A step whose mixing layer is another one keeps its input, since most of
  their inverses cost far more than the layer; there ``invert`` is ``recompute``.

A rebuilt input has rounding errors, which an ill-conditioned inverse amplifies. So ``invert`` also keeps the sum of
each channel of each input, and compares. Beyond :data:`MAX_DRIFT` the layers up to there run again from the last input
that was kept, and the backward pass goes on with what they give. No gradient comes from an input seen to be farther
off. Nothing is remembered from one training step to the next, so that a resumed training decides alike.

Within the bound, gradients of smooth networks are right to about ten times the drift. A ReLU whose input is within it
of zero may switch: then a unit at one pixel of one image gets the gradient of the other side.

References: Gomez et al., *The Reversible Residual Network*, NeurIPS 2017, for rebuilding; Chen et al., *Training Deep
Nets with Sublinear Memory Cost*, 2016, for recomputing; Behrmann et al., *Understanding and Mitigating Exploding
Inverses in Invertible Neural Networks*, AISTATS 2021, for the wrong gradients of a bad inverse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flows.errors import InputError, NonFiniteError
from flows.layers import Coupling, Layer
from flows.layers.base import Recorded
from flows.layers.composite import Composite
from flows.models.prepared_inverse import innermost
from flows.numerics import same_precision
from flows.solvers.checks import warn_once

Memory = Literal["store", "recompute", "invert"]

SPAN = 8
"""Number of parts, steps of flow, of which ``invert`` keeps one input: errors do not add up any further."""

MAX_DRIFT = 1e-5
"""Largest error of a rebuilt input, relative to its norm, image by image."""

DRIFT = (
    f"memory=invert: activations that were rebuilt from a layer's output are off by more than {MAX_DRIFT:g} of their "
    f"size; from there on they are computed again from the last ones that were kept, which takes more time: "
    f"model.memory=recompute does not"
)


class DriftWarning(UserWarning):
    """Activations could not be rebuilt exactly enough, and were computed again."""


def require_memory(memory: str) -> None:
    """Refuse what is not a :data:`Memory`.

    Raises:
        InputError: naming those that there are.
    """
    if memory not in get_args(Memory):
        raise InputError(f"memory must be {', '.join(get_args(Memory))}, not '{memory}'")


def run(layer: Composite, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """``layer(x)``, which keeps for the backward pass what ``memory`` says, and nothing where autograd is off.

    Cost: one more run of each network, in the backward pass. Memory, besides what one part of the layer needs: with
    ``recompute`` the input of each part, with ``invert`` the input of each part that is not inverted.
    """
    if memory == "store" or not torch.is_grad_enabled():
        return layer(x)
    chain = _Chain(list(_links(layer, memory)), same_precision(x.device), {})
    total = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
    kept: tuple[int, Tensor] = (0, x.detach())
    for place, (link, is_inverted) in enumerate(chain.links):
        if not is_inverted:
            kept = place, x.detach()
        parameters = [parameter for parameter in link.parameters() if parameter.requires_grad]
        x, log_det = _Link.apply(chain, place, *kept, x, *parameters)
        total = total + log_det
    return x, total


def _links(layer: Composite, memory: Memory) -> Iterator[tuple[Layer, bool]]:
    """What is run again as a whole, in data order, and whether its input is rebuilt."""
    for number, part in enumerate(layer.parts()):
        layers = list(innermost(part))[::-1]
        if memory == "invert" and all(one.is_pixelwise or isinstance(one, Coupling) for one in layers):
            yield from ((one, place > 0 or number % SPAN > 0) for place, one in enumerate(layers))
        else:
            yield part, False


@dataclass(frozen=True)
class _Chain:
    """One forward pass through some links, and what its backward pass knows.

    Attributes:
        links: each with whether its input is rebuilt.
        precision: computes as the forward pass did.
        inputs: during the backward pass, inputs of links by their places; the output of the last has the place behind.
    """

    links: list[tuple[Layer, bool]]
    precision: Callable[[], contextlib.AbstractContextManager[Any]]
    inputs: dict[int, Tensor]

    def find_inputs(self, place: int, x: Tensor, last: int) -> None:
        """From the input of one link those of all up to the last."""
        self.inputs[place] = x
        with torch.no_grad():
            for between in range(place, last):
                self.inputs[between + 1], _ = self.links[between][0](self.inputs[between])


class _Link(torch.autograd.Function):
    """One link of a chain. Its parameters are arguments, so that each has its gradient as soon as with ``store``."""

    @staticmethod
    def forward(
        ctx: Any, chain: _Chain, place: int, kept_place: int, kept: Tensor, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        with chain.precision():
            z, log_det = chain.links[place][0](x)
        ctx.chain, ctx.place, ctx.kept_place = chain, place, kept_place
        sums = None if place == kept_place else _channel_sums(x)
        last_output = z if place == len(chain.links) - 1 else None
        # Autograd refuses the backward pass if one of these was written to since; the parameters are read there again.
        ctx.save_for_backward(kept, sums, last_output, *parameters)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z_gradient: Tensor, log_det_gradient: Tensor) -> tuple[Tensor | None, ...]:
        chain, place = ctx.chain, ctx.place
        kept, sums, last_output, *parameters = ctx.saved_tensors
        z = chain.inputs.pop(place + 1) if last_output is None else last_output
        link, _ = chain.links[place]
        with torch.enable_grad(), chain.precision():
            again = None if sums is None or place in chain.inputs else _rebuilt(link, z, sums)
            if again is None:
                if place not in chain.inputs:
                    chain.find_inputs(ctx.kept_place, kept, place)
                x = chain.inputs[place].detach().requires_grad_()
                again = (x,), link(x)
        inputs, outputs = again
        chain.inputs[place] = _joined(inputs)
        pairs = zip(outputs, (z_gradient, log_det_gradient), strict=True)
        outputs, gradients = zip(*((o, gradient) for o, gradient in pairs if o.requires_grad), strict=True)
        found = torch.autograd.grad(outputs, [*inputs, *parameters], gradients, allow_unused=True)
        if place == 0:
            chain.inputs.clear()
        x_gradient = _joined(found[: len(inputs)]) if ctx.needs_input_grad[4] else None
        return None, None, None, None, x_gradient, *found[len(inputs) :]


def _rebuilt(link: Layer, z: Tensor, sums: Tensor) -> Recorded | None:
    """The link run again on the input that belongs to ``z``; ``None``, with a warning, if that is not near enough."""
    with contextlib.suppress(NonFiniteError):
        inputs, outputs = link.rebuild(z)
        x = _joined(inputs).detach()
        error = torch.linalg.vector_norm(_channel_sums(x) - sums, dim=1)
        if (error <= MAX_DRIFT * torch.linalg.vector_norm(x.flatten(1), dim=1)).all():
            return inputs, outputs
    warn_once(DriftWarning, DRIFT, DriftWarning, stacklevel=1)
    return None


def _channel_sums(x: Tensor) -> Tensor:
    """Of each image, (B, C). An error of norm ``e`` spread over an image at random changes them by about ``e``."""
    return x.sum(dim=(2, 3), dtype=torch.float64)  # of many numbers, so that its own rounding is none of the drift


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
