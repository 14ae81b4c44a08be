"""Layers one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from flows.layers.base import Layer
from flows.layers.composite import Composite


class Sequential(Composite):
    """Layers applied in reading order, data side first; itself a layer.

    ``z = f_n(... f_2(f_1(x)))`` and ``log_det = sum_i log |det df_i|``; ``inverse`` walks back.

    Args:
        layers: the layers, in data order. None at all is the identity.

    Shapes: those of the layers, which must fit one another.

    Example:
        >>> import torch
        >>> from flows.layers import Reverse, Sequential, Squeeze
        >>> flow = Sequential(Squeeze(), Reverse(4))
        >>> z, log_det = flow(torch.zeros(5, 1, 6, 8))
        >>> z.shape, log_det.shape, flow.inverse(z).shape
        (torch.Size([5, 4, 3, 4]), torch.Size([5]), torch.Size([5, 1, 6, 8]))
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]  # type: ignore[return-value]

    def parts(self) -> Iterable[Layer]:
        return self
