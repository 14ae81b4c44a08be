"""Every numerical decision of the project, taken once.

* **Log-determinants are never less precise than float32.** They are sums over thousands of dimensions, and one bit
  lost there shows in the second decimal of a bits/dim. Under autocast the activations may be half precision;
  ``per_image_sum`` accumulates in float32 all the same.
* **Small matrices are factorised in float64.** The matrix of a 1x1 convolution, the centre tap of an autoregressive
  convolution and the frequency matrices of a periodic one are at most a few hundred rows; their determinants and
  inverses cost nothing beside the convolutions and decide how exact the round trip is.
* **No TF32 unless asked for.** A forward pass in TF32 (10 bits of mantissa) followed by an exact inverse does not
  return to the image it started from. ``set_matmul_precision`` switches matrix products and convolutions together,
  for both directions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from flows.errors import InputError

MatmulPrecision = Literal["exact", "tf32"]


def set_matmul_precision(precision: MatmulPrecision) -> None:
    """Choose how float32 matrix products and convolutions are computed on GPUs: ``exact`` or, faster, ``tf32``.

    Raises:
        InputError: another name.
    """
    if precision not in get_args(MatmulPrecision):
        raise InputError(f"precision must be {' or '.join(get_args(MatmulPrecision))}, not '{precision}'")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is when it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_image_sum(x: Tensor) -> Tensor:
    """Sum over all but the first dimension: ``(B, ...) -> (B,)``, in float32 or better."""
    return at_least_float32(x).flatten(start_dim=1).sum(dim=1)


def same_for_every_image(log_det: Tensor, x: Tensor) -> Tensor:
    """A log-determinant that does not depend on the image: ``() -> (B,)``, in float32 or better."""
    return log_det.to(torch.promote_types(x.dtype, torch.float32)).expand(len(x))
