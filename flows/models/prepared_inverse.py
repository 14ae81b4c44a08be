"""The inverse of a whole model, prepared: what depends on the weights alone is computed once, and never stale.

Three things make the inverse of a model cheaper than the inverses of its layers, one by one:

* neighbours whose inverses are affine maps of each pixel's channels (actnorm, 1x1 convolutions, permutations) become
  one such map, multiplied out in float64;
* whether the weights have changed is asked once for all layers, not by each of them;
* on a GPU, the second batch of a size on is replayed as one CUDA graph.

Which layers these are is theirs to say: :meth:`flows.layers.Layer.prepare_inverse`. Whatever prepares nothing, above
all the coupling networks with nearly all of a model's weights, is run as it is and reads its weights at every call: to
compare so many weights would cost as much as computing with them.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain

import torch
from torch import Tensor, nn

from flows.errors import NonFiniteError
from flows.layers import Layer
from flows.layers.pixel_map import PixelMap
from flows.layers.weight_cache import same_contents

InvertLayer = Callable[[Layer, Tensor], Tensor]
Observe = Callable[[nn.Module, Tensor], Tensor]
"""Told of a module and of what its inverse gave; returns what to go on with."""

InvertModel = Callable[[list[Tensor], InvertLayer, Observe], Tensor]

Step = tuple[Layer, Callable[[Tensor], Tensor]]
"""The layer up to which a step inverts, and the step."""

MAX_GRAPHS = 2
"""Batch sizes for which a CUDA graph of the whole model is kept, each with the memory of one pass."""


def unobserved(module: nn.Module, h: Tensor) -> Tensor:
    """Go on with what there is."""
    return h


class PreparedInverse:
    """Runs the inverse of a model with everything prepared that its layers offer to prepare.

    Every call compares the contents of all tensors that something was prepared from, and prepares anew when one has
    changed: an optimiser step, ``load_state_dict``, a swap through ``.data``, ``.to(device)``, an edit in place or
    another layer in the place of one are all noticed. Copies and pickles start empty.

    Gradients are not recorded through what was prepared: call it under ``torch.no_grad()`` or
    ``torch.inference_mode()``.

    Cost of a call besides the inverse: one pass over the prepared layers' weights (a few per cent of the model's); on a
    GPU, one wait for the device.
    """

    def __init__(self) -> None:
        self._state = _State({}, [], {})
        self._lock = threading.Lock()

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
        state = self._current(model, list(layers))
        if state.is_capturable and _may_capture(latents[0].device):
            with self._lock:
                return state.graphs.run(model, invert, state.invert_layer, latents)
        return invert(latents, state.invert_layer, unobserved)

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
        state, lost = self._current(model, list(layers)), dict[int, str]()
        names = {module: name for name, module in model.named_modules()}

        def keep_finite(name: str, h: Tensor) -> Tensor:
            finite = torch.isfinite(h).flatten(1).all(dim=1)
            for index in (~finite).nonzero().flatten().tolist():
                lost.setdefault(index, name)
            return torch.where(finite[:, None, None, None], h, 0.0)

        def observe(module: nn.Module, h: Tensor) -> Tensor:
            return keep_finite(names[module], h)

        latents = [keep_finite("latents", z) for z in latents]
        x = invert(latents, lambda layer, z: state.invert_layer(layer, z, observe), observe)
        x[list(lost)] = 0.0
        return x, lost

    def _current(self, model: nn.Module, layers: Sequence[Layer]) -> _State:
        # Replaced as a whole, so that two threads may both prepare, but never see a mixture.
        state = self._state
        parts = {layer: list(_parts(layer)) for layer in layers}
        tensors = [tensor for part in chain.from_iterable(parts.values()) for tensor in _prepared_from(part)]
        if not state.is_current(parts, tensors):
            self._state = state = _State(parts, tensors, {module: name for name, module in model.named_modules()})
        return state

    def __deepcopy__(self, memo: dict) -> PreparedInverse:
        return PreparedInverse()

    def __reduce__(self) -> tuple[type[PreparedInverse], tuple[()]]:
        return PreparedInverse, ()


class _State:
    """What was prepared for one set of weights."""

    def __init__(self, parts: dict[Layer, list[Layer]], tensors: list[Tensor], names: dict[nn.Module, str]) -> None:
        self._parts, self._snapshot = parts, [tensor.detach().clone() for tensor in tensors]
        self.names = names
        # For each layer and shape the steps of its inverse, each with the last of the parts that it inverts.
        self._steps: dict[tuple, list[Step]] = {}
        self.is_capturable = all(
            part.inverse_is_capturable and _describes_inverse(type(part), "inverse_is_capturable")
            for part in chain.from_iterable(parts.values())
        )
        self.graphs = _Graphs()

    def is_current(self, parts: dict[Layer, list[Layer]], tensors: list[Tensor]) -> bool:
        return self._parts == parts and same_contents(self._snapshot, tensors)  # layers are equal if they are the same

    def invert_layer(self, layer: Layer, z: Tensor, observe: Observe = unobserved) -> Tensor:
        key = (layer, z.shape[1:], z.dtype, z.device)
        if key not in self._steps:
            self._steps[key], x = self._prepare(layer, z, observe)
            return x
        for part, step in self._steps[key]:
            z = observe(part, step(z))
        return z

    def _prepare(self, layer: Layer, z: Tensor, observe: Observe) -> tuple[list[Step], Tensor]:
        """The steps from ``z`` to ``x``, and ``x``: only on the way is it seen how large the image is where."""
        steps: list[Step] = []
        merged: tuple[Layer, PixelMap] | None = None
        for part in self._parts[layer]:
            step = self._prepare_part(part, (z.shape[2], z.shape[3]))
            if isinstance(step, PixelMap):
                merged = part, step if merged is None else merged[1].then(step)
                continue
            pending: list[Step] = [] if merged is None else [(merged[0], in_float64(merged[1]))]
            pending.append((part, step))
            for at, following in pending:
                steps.append((at, following))
                z = observe(at, following(z))
            merged = None
        if merged is not None:
            steps.append((merged[0], in_float64(merged[1])))
            z = observe(merged[0], steps[-1][1](z))
        return steps, z

    def _prepare_part(self, part: Layer, image_size: tuple[int, int]) -> PixelMap | Callable[[Tensor], Tensor]:
        # What is kept must serve later calls in any autograd mode, so it must not consist of inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            try:
                step = _prepared(part, image_size)  # says so if the layer is badly conditioned for its own type
                if not part.is_affine:
                    return step
                exact = _prepared(copy.deepcopy(part).double(), image_size)
            except NonFiniteError as error:
                raise NonFiniteError(f"{self.names[part]}: {error}") from error
        return exact if isinstance(exact, PixelMap) else in_float64(exact)


def _prepared(part: Layer, image_size: tuple[int, int]) -> PixelMap | Callable[[Tensor], Tensor]:
    step = part.prepare_inverse(image_size) if _describes_inverse(type(part), "prepare_inverse") else None
    return part.inverse if step is None else step


def in_float64(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The step between numbers of any type, computed in float64."""
    return partial(_in_float64, step)


def _in_float64(step: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return step(h.double()).to(h.dtype)


def exact_forward(layer: Layer, x: Tensor) -> Tensor:
    """``layer(x)`` without its log-det, affine parts in float64: what the prepared inverse undoes best."""
    for part in reversed(list(_parts(layer))):
        if part.is_affine:
            exact = copy.deepcopy(part).double()
            x = exact(x.double())[0].to(x.dtype)
        else:
            x = part(x)[0]
    return x


class CapturedInverse:
    """A function of a list of tensors, captured as a CUDA graph for inputs like ``latents``: one launch in all."""

    def __init__(self, inverse: Callable[[list[Tensor]], Tensor], latents: list[Tensor]) -> None:
        self._latents = [z.clone() for z in latents]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._x = inverse(self._latents)

    def __call__(self, latents: list[Tensor]) -> Tensor:
        for kept, z in zip(self._latents, latents, strict=True):
            kept.copy_(z)
        self._graph.replay()
        return self._x.clone()


class _Graphs:
    """The CUDA graphs of one set of prepared weights.

    A graph reads the weights that nothing was prepared from where they lay when it was captured. What is written there
    since, it sees; once any of them has moved, all graphs are dropped.
    """

    def __init__(self) -> None:
        # By batch size, type and stream: two streams must not share a graph's buffers. None stands for "seen once".
        self._graphs: OrderedDict[tuple, CapturedInverse | None] = OrderedDict()
        self._places: list[tuple] = []

    def run(self, model: nn.Module, invert: InvertModel, invert_layer: InvertLayer, latents: list[Tensor]) -> Tensor:
        places = [_place(tensor) for tensor in chain(model.parameters(), model.buffers())]
        if places != self._places:
            self._graphs.clear()
            self._places = places
        like = latents[0]
        key = (len(like), like.dtype, torch.cuda.current_stream(like.device).cuda_stream)
        seen = key in self._graphs
        graph = self._graphs.pop(key, None)
        if seen and graph is None:
            # The first batch ran outside of a graph: all is prepared, and the libraries have chosen their kernels.
            graph = CapturedInverse(lambda latents: invert(latents, invert_layer, unobserved), latents)
        self._graphs[key] = graph
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return invert(latents, invert_layer, unobserved) if graph is None else graph(latents)


def _may_capture(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _parts(layer: Layer) -> Iterator[Layer]:
    """The layers whose inverses, in this order, make up the inverse of ``layer``, down to those without parts."""
    parts = layer.inverse_parts() if _describes_inverse(type(layer), "inverse_parts") else ()
    if not parts:
        yield layer
    for part in parts:
        yield from _parts(part)


@cache
def _describes_inverse(kind: type[Layer], name: str) -> bool:
    """Whether the member of this name speaks of the present ``inverse``, not of one that a subclass has replaced."""
    return next(name in vars(cls) for cls in kind.__mro__ if name in vars(cls) or "inverse" in vars(cls))


def _prepared_from(layer: Layer) -> Iterator[Tensor]:
    """All that the layer's ``prepare_inverse`` may read and that may change; nothing if it has none of its own."""
    if _describes_inverse(type(layer), "prepare_inverse"):
        yield from _contents(layer)


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
