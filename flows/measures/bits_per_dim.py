"""Bits/dim of a set of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flows.errors import InputError
from flows.models.base import DensityModel
from flows.numerics import Precision, scoring
from flows.randomness import evaluation_noise


@dataclass(frozen=True)
class Score:
    """A mean over images with its standard error, in bits/dim.

    Images of one group are alike, so the error is the cluster-robust one. With ``S_g`` the sum of ``x_i - mean`` over
    the images of group g, of G groups and N images::

        sqrt(G / (G - 1) sum_g S_g^2) / N.

    It is the usual error where each image is a group of its own, and NaN where there is one group.

    Reference: Liang & Zeger, *Longitudinal data analysis using generalized linear models*, 1986.
    """

    mean: float
    standard_error: float
    num_images: int
    num_groups: int

    @classmethod
    def of(cls, bits_per_dim: Tensor, groups: Tensor | None = None) -> Score:
        """Summarise the bits/dim of single images.

        Args:
            bits_per_dim: ``(N,)``, N at least 1; also differences between two models.
            groups: of these images, int64 ``(N,)``; without them each image is a group of its own.
        """
        values = bits_per_dim.double()
        members = torch.arange(len(values)) if groups is None else groups.unique(return_inverse=True)[1]
        num_groups = int(members.max()) + 1
        sums = torch.zeros(num_groups, dtype=torch.float64).index_add(0, members, values - values.mean())
        variance = num_groups / (num_groups - 1) * float(sums.square().sum()) if num_groups > 1 else math.nan
        return cls(float(values.mean()), math.sqrt(variance) / len(values), len(values), num_groups)

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.standard_error:.3f}" if self.num_groups > 1 else f"{self.mean:.3f}"

    @property
    def what_counts(self) -> str:
        """What the error is computed from: ``243 images``, or ``243 images in 27 groups, errors by group``."""
        images = f"{self.num_images:,} images"
        grouped = f" in {self.num_groups:,} groups, errors by group"
        return images if self.num_groups == self.num_images else images + grouped


@torch.no_grad()
def bits_per_dim(
    flow: DensityModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    num_samples: int = 1,
    precision: Precision = "exact",
    on_batch: Callable[[int], object] = lambda num_images: None,
) -> Tensor:
    """Bits/dim of every image, ``(N,)`` float64 on the CPU: an upper bound, by ``num_samples`` noise draws each.

    With ``b_k`` the bits/dim of an image under its k-th draw of noise, D its number of dimensions, the bound is
    ``-log2(1/K sum_k 2^(-D b_k)) / D``: that of importance weighting with the dequantiser's ``q`` as proposal. In
    expectation it falls with K, towards the bits/dim that the flow gives to the pixel's whole bin; K = 1 is the usual
    bound. The cost is K forward passes.

    Args:
        flow: the model.
        batches: pairs of uint8 images ``(B, C, H, W)`` and their indices ``(B,)``.
        seed: of the dequantisation noise, which depends on it, an image's index and k alone.
        num_samples: K, at least 1.
        precision: of every score, whatever is chosen around (:mod:`flows.numerics`).
        on_batch: told the number of images after each batch, for a progress bar.

    Raises:
        InputError: ``num_samples`` below 1, or another precision.

    Reference: Burda et al., *Importance Weighted Autoencoders*, ICLR 2016, section 3; for dequantisation, Ho et al.,
    *Flow++*, ICML 2019, section 3.1.
    """
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, not {num_samples}")
    scores = []
    for images, indices in batches:
        draws = []
        for draw in range(num_samples):
            noise = evaluation_noise(flow.dequantizer.noise, indices, flow.image_shape, seed, draw).to(
                flow.device, flow.dtype
            )
            with scoring(precision, flow.device):
                draws.append(flow.bits_per_dim(images, noise).cpu())
        scores.append(_importance_weighted(torch.stack(draws), flow.num_dims))
        on_batch(len(images))
    return torch.cat(scores)


def _importance_weighted(bits_per_dim: Tensor, num_dims: int) -> Tensor:
    """The bound of :func:`bits_per_dim` from that of single draws, ``(K, B) -> (B,)``."""
    nats_per_bit_per_dim = num_dims * math.log(2.0)
    log_probs = -nats_per_bit_per_dim * bits_per_dim.double()
    return -(torch.logsumexp(log_probs, dim=0) - math.log(len(log_probs))) / nats_per_bit_per_dim
