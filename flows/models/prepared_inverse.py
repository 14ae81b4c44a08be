"""The inverse of a whole model, prepared: what depends on the weights alone is computed once, and never stale.

Three things make the inverse of a model cheaper and more exact than the inverses of its layers, one by one:

* neighbours that are affine maps of each pixel's channels (actnorm, 1x1 convolutions, permutations) become one such
  map, and every other affine layer runs in float64;
* one comparison tells whether the weights of any of these layers have changed, and not one for each of them;
* on a GPU, the second batch of a size on is replayed as one CUDA graph.

Layers say what they are by the attributes of :class:`flows.layers.Layer`. All others, above all the coupling networks
with nearly all of a model's weights, run as they are and read their weights at every call. Comparing that many weights
would cost as much as computing with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from flows.errors import NonFiniteError
from flows.layers import Layer
from flows.layers.composite import Composite
from flows.layers.weight_cache import WeightCache, frozen_copy, remembers_weights
from flows.solvers.graphs import GraphStore, may_capture

InvertLayer = Callable[[Layer, Tensor], Tensor]
Observe = Callable[[nn.Module, Tensor], Tensor]
"""Receives a module and the output of its inverse; returns the tensor to continue with."""

InvertModel = Callable[[list[Tensor], InvertLayer, Observe], Tensor]

Step = tuple[Layer, Callable[[Tensor], Tensor]]
"""The layer up to which a step inverts, and the step."""

MAX_GRAPHS = 2
"""Batch sizes for which a CUDA graph of the whole model is kept, each with the memory of one pass."""


def unobserved(module: nn.Module, h: Tensor) -> Tensor:
    """Continue with what there is."""
    return h


class PreparedInverse:
    """Runs the inverse of a model on prepared layers.

    Every call compares the contents of all tensors that something was prepared from, and prepares anew when one has
    changed: an optimiser step, ``load_state_dict``, a swap through ``.data``, ``.to(device)``, an edit in place or
    another layer in the place of one are all noticed. Copies and pickles start empty.

    Call it under ``torch.no_grad()`` or ``torch.inference_mode()``: gradients are not recorded.

    Cost of a call besides the inverse: one pass over the prepared layers' weights (a few per cent of the model's); on a
    GPU, one wait for the device.
    """

    def __init__(self) -> None:
        self._state: WeightCache[_State] = WeightCache()

    def __call__(self, model: nn.Module, layers: Iterable[Layer], invert: InvertModel, latents: list[Tensor]) -> Tensor:
        """Return ``invert(latents, invert_layer, unobserved)``; ``invert_layer`` runs a layer's inverse, prepared.

        Args:
            model: whose parameters and buffers ``invert`` reads.
            layers: all that ``invert`` passes to ``invert_layer``, in any order.
            invert: the inverse of the model; it waits for no device.
            latents: its argument.

        Raises:
            NonFiniteError: a layer has no inverse, which is named; or a layer refuses what an earlier one gave.
        """
        state = self._current(model, layers)

        def run(latents: list[Tensor]) -> Tensor:
            return invert(latents, state.invert_layer, unobserved)

        if state.is_capturable and may_capture(latents[0].device):
            # A graph reads the weights that nothing was prepared from where they lay when it was captured.
            places = [_place(tensor) for tensor in chain(model.parameters(), model.buffers())]
            return state.graphs.run(run, latents, places)
        return run(latents)

    def finite_part(
        self, model: nn.Module, layers: Iterable[Layer], invert: InvertModel, latents: list[Tensor]
    ) -> tuple[Tensor, dict[int, str]]:
        """What :meth:`__call__` returns, zero for images that overflow on the way, and where each of these does.

        An image that is not finite behind a module goes on as zeros, so that it spoils no other and no layer refuses
        it. The others take exactly the steps that they take in :meth:`__call__`.

        Returns:
            The images, and for each that is lost the name of the module; ``"latents"`` if it was not finite before.

        Raises:
            NonFiniteError: a layer has no inverse at all.

        Cost: that of a call, and two passes over the activations and one wait for the device behind every step.
        """
        state, lost = self._current(model, layers), dict[int, str]()

        def keep_finite(name: str, h: Tensor) -> Tensor:
            finite = torch.isfinite(h).flatten(1).all(dim=1)
            for index in (~finite).nonzero().flatten().tolist():
                lost.setdefault(index, name)
            return torch.where(finite[:, None, None, None], h, 0.0)

        def observe(module: nn.Module, h: Tensor) -> Tensor:
            return keep_finite(state.names[module], h)

        latents = [keep_finite("latents", z) for z in latents]
        x = invert(latents, lambda layer, z: state.invert_layer(layer, z, observe), observe)
        x[list(lost)] = 0.0
        return x, lost

    def _current(self, model: nn.Module, layers: Iterable[Layer]) -> _State:
        parts = {layer: list(innermost(layer)) for layer in layers}
        every_part = list(chain.from_iterable(parts.values()))
        tensors = [tensor for part in every_part if _is_prepared(part) for tensor in _contents(part)]
        return self._state.get(lambda: _State(model, parts), *tensors, key=tuple(every_part))


@dataclass(frozen=True)
class PixelMap:
    """``h[:, :, i, j] -> matrix h[:, :, i, j] + shift``.

    Attributes:
        matrix: (C', C), in float64, so that merging maps adds no error that matters.
        shift: (C',), in float64.
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def inverting(cls, layer: Layer, num_channels: int) -> PixelMap:
        """The inverse of a pixelwise layer in float64, from what it makes of the unit vectors."""
        like = next(chain(layer.parameters(), layer.buffers()))
        unit = torch.eye(num_channels, dtype=torch.float64, device=like.device)
        answers = layer.inverse(torch.cat([torch.zeros_like(unit[:1]), unit])[:, :, None, None])[:, :, 0, 0]
        return cls((answers[1:] - answers[0]).T.contiguous(), answers[0])

    def then(self, other: PixelMap) -> PixelMap:
        """The one map that does what this one and then ``other`` do."""
        return PixelMap(other.matrix @ self.matrix, other.matrix @ self.shift + other.shift)

    def __call__(self, h: Tensor) -> Tensor:
        return conv2d(h, self.matrix[:, :, None, None], self.shift)


class _State:
    """What was prepared for one set of weights."""

    def __init__(self, model: nn.Module, parts: dict[Layer, list[Layer]]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.graphs = GraphStore(MAX_GRAPHS)
        self.is_capturable = all(part.inverse_is_capturable for part in chain.from_iterable(parts.values()))
        self._parts = parts
        self._copies: dict[Layer, Layer] = {}
        self._steps: dict[tuple, list[Step]] = {}  # by layer, and shape, type and device of its latents

    def invert_layer(self, layer: Layer, z: Tensor, observe: Observe = unobserved) -> Tensor:
        key = (layer, z.shape[1:], z.dtype, z.device)
        if key not in self._steps:
            self._steps[key], x = self._prepare(layer, z, observe)
            return x
        for part, step in self._steps[key]:
            z = observe(part, step(z))
        return z

    def _prepare(self, layer: Layer, z: Tensor, observe: Observe) -> tuple[list[Step], Tensor]:
        """The steps from ``z`` to ``x``, and ``x``: the shape of the latents of each part shows only on the way."""
        steps: list[Step] = []
        merged: tuple[Layer, PixelMap] | None = None

        def append(part: Layer, step: Callable[[Tensor], Tensor]) -> None:
            nonlocal z
            steps.append((part, step))
            z = observe(part, step(z))

        for part in self._parts[layer]:
            step = self._prepare_part(part, z)
            if isinstance(step, PixelMap):
                merged = part, step if merged is None else merged[1].then(step)
                continue
            if merged is not None:
                append(merged[0], partial(_in_float64, merged[1]))
                merged = None
            append(part, step)
        if merged is not None:
            append(merged[0], partial(_in_float64, merged[1]))
        return steps, z

    def _prepare_part(self, part: Layer, z: Tensor) -> PixelMap | Callable[[Tensor], Tensor]:
        if not _is_prepared(part):
            return part.inverse
        # What is kept must serve later calls in any autograd mode, so it must not consist of inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            if part not in self._copies:
                self._copies[part] = frozen_copy(part)
            twin = self._copies[part]
            try:
                part.inverse(torch.zeros_like(z[:1]))  # warns if the layer is badly conditioned for its own type
                if not part.is_affine:
                    return twin.inverse
                twin.double()
                if part.is_pixelwise:
                    return PixelMap.inverting(twin, z.shape[1])
            except NonFiniteError as error:
                raise NonFiniteError(f"{self.names[part]}: {error}") from error
        return partial(_in_float64, twin.inverse)


def _in_float64(step: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """The step between numbers of any type, computed in float64."""
    return step(h.double()).to(h.dtype)


def exact_forward(layer: Layer, x: Tensor) -> Tensor:
    """``layer(x)`` without its log-det, affine parts in float64: what the prepared inverse undoes best."""
    for part in reversed(list(innermost(layer))):
        x = copy.deepcopy(part).double()(x.double())[0].to(x.dtype) if part.is_affine else part(x)[0]
    return x


def innermost(layer: Layer) -> Iterator[Layer]:
    """The layers without parts whose inverses, in this order, are the inverse of ``layer``."""
    if isinstance(layer, Composite) and type(layer).inverse is Composite.inverse:
        for part in reversed(list(layer.parts())):
            yield from innermost(part)
    else:
        yield layer


def _is_prepared(part: Layer) -> bool:
    return part.is_affine or remembers_weights(part)


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _contents(module: nn.Module) -> Iterator[Tensor]:
    # Not module.parameters() and so on, which take several times as long as this.
    for tensor in module._parameters.values():
        if tensor is not None:
            yield tensor
    for name, buffer in module._buffers.items():
        # The mask of a parameter belongs to what the layer is, as its type does; it is as large as the weights.
        if buffer is not None and name.removesuffix("_mask") not in module._parameters:
            yield buffer
    for child in module._modules.values():
        if child is not None:
            yield from _contents(child)
