"""What keeps samples near the pixels' range: a logit between pixels and flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flows.errors import InputError
from flows.layers.base import Layer
from flows.numerics import per_image_sum


class Logit(Layer):
    """Stretches an open interval a little wider than the pixels' range to the whole line, number by number.

    Map: ``z = w/4 logit(p)`` with ``p = (x + 1/2 + m) / w`` and the interval's length ``w = 1 + 2 m``. Log-det:
    ``-sum log(4 p (1 - p))``. Inverse: ``x = w sigmoid(4 z / w) - 1/2 - m``.

    The slope is 1 at the middle of the range and ``w^2 / (4 m (1 + m))`` at its ends. So the inverse never amplifies,
    and whatever a latent is, its image lies between ``-1/2 - m`` and ``1/2 + m``. Where ``z`` is large, many latents
    round to the same image.

    Args:
        margin: m, positive: how far beyond the range [-1/2, 1/2] of the pixels an image may lie.

    Shapes: any, kept.

    Raises:
        InputError: ``margin`` is not positive.

    Reference: Dinh et al., *Real NVP*, section 4.1, with ``alpha = m / w``.

    Note:
        Neither the paper nor Glow has it. There a sample's values have no bounds, and decoding clamps them.

    Example:
        >>> import torch
        >>> from flows.layers import Logit
        >>> layer = Logit(margin=0.1)
        >>> [round(x, 3) for x in layer.inverse(torch.tensor([[-1e4, 0.0, 1e4]])).squeeze().tolist()]
        [-0.6, 0.0, 0.6]
    """

    inverse_is_capturable = True

    def __init__(self, margin: float) -> None:
        super().__init__()
        if not margin > 0:
            raise InputError(f"margin must be positive, or null for none, not {margin}")
        self.margin, self.length = margin, 1.0 + 2.0 * margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_odds = torch.logit((x + 0.5 + self.margin) / self.length)
        # log(4 p (1 - p)) is even in the log-odds, and log p = logsigmoid(log_odds).
        log_slope = -(logsigmoid(log_odds) + logsigmoid(-log_odds) + 2.0 * torch.log(log_odds.new_tensor(2.0)))
        return self.length / 4.0 * log_odds, per_image_sum(log_slope)

    def inverse(self, z: Tensor) -> Tensor:
        return self.length * torch.sigmoid(4.0 / self.length * z) - (0.5 + self.margin)
