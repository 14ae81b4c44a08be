"""What the solvers refuse, and what they warn of."""

import pytest
import torch
from support.filters import EVERY_BACKEND, random_filter, random_latents

from flows import kernels
from flows.errors import InputError, NonFiniteError
from flows.solvers import (
    IllConditionedWarning,
    checks,
    prepare_autoregressive_conv,
    solve_autoregressive_conv,
)

WEIGHT = random_filter(3, 3, "lower")
LATENT = random_latents(2, 3, 4, 5)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(checks, "_already_said", set())


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


REFUSED = {
    "latent of another rank": (dict(z=LATENT[0]), r"z must have the shape \(B, C, H, W\)"),
    "other channels": (dict(z=LATENT[:, :2]), r"z must have the shape \(B, 3, 4, 5\); got \(2, 2, 4, 5\)"),
    "empty image": (dict(z=LATENT[:, :, :0]), "image_size must be a positive height and width"),
    "other type": (dict(z=LATENT.float()), "same type"),
    "other device": (dict(z=LATENT.to("meta")), "same device; got meta and cpu"),
    "half precision": (dict(z=LATENT.half(), weight=WEIGHT.half()), "float32 or float64"),
    "filter of another rank": (dict(weight=WEIGHT[0]), r"\(C, C, k, k\)"),
    "filter with other channels": (dict(weight=WEIGHT[:, :2]), r"\(C, C, k, k\)"),
    "oblong filter": (dict(weight=WEIGHT[..., :1]), r"\(C, C, k, k\)"),
    "even kernel": (dict(weight=WEIGHT[..., 1:, 1:]), "odd kernel"),
    "tap in the past": (dict(weight=changed(WEIGHT, (0, 2, 0, 2), 1e-9)), r"non-zero at \(0, 2, 0, 2\)"),
    "other direction": (dict(direction="upper"), "not autoregressive in direction 'upper'"),
    "no direction": (dict(direction="left"), "direction must be one of lower, upper; got 'left'"),
    "no dilation": (dict(dilation=0), "dilation must be a positive integer"),
    "misspelt backend": (dict(backend="torhc"), "unknown solver backend 'torhc': did you mean 'torch'"),
    "unknown backend": (dict(backend="fft"), "there are reference, jacobi, torch, compiled, cuda"),
    "backend for GPUs": (dict(backend="cuda"), "the cuda backend cannot be used: it runs on CUDA devices"),
    "more than the memory": (dict(z=LATENT.new_zeros(1, 3, 80, 80), backend="reference"), "at most 16384 unknowns"),
}


WITHOUT_INVERSE = {
    "zero diagonal": (dict(weight=changed(WEIGHT, (2, 2, 1, 1), 0)), "channel 2 has 0.0 on"),
    "infinite diagonal": (dict(weight=changed(WEIGHT, (1, 1, 1, 1), float("inf"))), "channel 1 has inf on"),
    "NaN tap": (dict(weight=changed(WEIGHT, (0, 2, 1, 2), float("nan"))), r"NaN or infinity at \(0, 2, 1, 2\)"),
}


@pytest.mark.parametrize("case", REFUSED | WITHOUT_INVERSE)
def test_wrong_input_is_refused_in_one_line(case):
    arguments, message = (REFUSED | WITHOUT_INVERSE)[case]
    with pytest.raises(InputError if case in REFUSED else NonFiniteError, match=message) as caught:
        solve_autoregressive_conv(**{"z": LATENT, "weight": WEIGHT, "direction": "lower"} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("batch", (1, 3, 8, 21))
def test_a_latent_that_is_not_finite_is_never_returned_as_if_inverted(backend, value, batch):
    for num_channels, dtype in ((3, torch.float64), (13, torch.float32)):
        weight = random_filter(num_channels, 3, "lower", dtype=dtype)
        latent = random_latents(batch, num_channels, 4, 5, dtype=dtype)
        for place in ((num_channels - 1, 3, 4), (0, 0, 0), (1, 2, 1)):
            z = changed(latent, (batch - 1, *place), value)
            with pytest.raises(NonFiniteError, match=f"NaN or infinity in image {batch - 1} of the batch"):
                solve_autoregressive_conv(z, weight, direction="lower", backend=backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_large_finite_numbers_are_not_taken_for_infinity(backend):
    weight = torch.eye(3, dtype=torch.float32).view(3, 3, 1, 1)
    z = torch.full((2, 3, 4, 4), 3e38)
    assert torch.equal(solve_autoregressive_conv(z, weight, direction="lower", backend=backend), z)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("direction", ("lower", "upper"))
def test_a_badly_conditioned_filter_is_reported_once_with_the_figure(backend, direction):
    weight = random_filter(8, 3, direction, scale=0.4, dtype=torch.float32)
    with pytest.warns(IllConditionedWarning) as caught:
        for _ in range(3):
            solver = prepare_autoregressive_conv(weight, direction=direction, image_size=(8, 8), backend=backend)
    assert len(caught) == 1
    assert f"{solver.inverse_gain:.3g} times" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("mask", ("square", "raster"))
@pytest.mark.parametrize("direction", ("lower", "upper"))
def test_the_inverse_gain_is_the_largest_entry_of_the_inverse(mask, direction):
    weight = random_filter(4, 3, direction, mask, scale=0.25)
    solver = prepare_autoregressive_conv(weight, direction=direction, image_size=(5, 4), backend="reference")
    diagonal = weight[:, :, 1, 1].diagonal().repeat_interleave(20)
    inverse = solver((torch.eye(80).double() * diagonal).view(80, 4, 5, 4)).flatten(1)
    if mask == "square":
        assert solver.inverse_gain == pytest.approx(float(inverse.abs().max()))
    else:  # impulses in both corners: a lower bound
        assert 0.2 * inverse.abs().max() < solver.inverse_gain <= inverse.abs().max() * (1 + 1e-12)


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(kernels, "_why_missing", "its extension was not built")


def test_without_the_extension_torch_takes_over_and_says_so_once(no_extension):
    with pytest.warns(RuntimeWarning, match="extension was not built. The torch solver takes over") as caught:
        for _ in range(3):
            x = solve_autoregressive_conv(LATENT, WEIGHT, direction="lower")
    assert len(caught) == 1
    assert torch.equal(x, solve_autoregressive_conv(LATENT, WEIGHT, direction="lower", backend="torch"))


def test_without_the_extension_asking_for_it_is_an_error(no_extension):
    with pytest.raises(InputError, match="the compiled backend cannot be used: its extension was not built"):
        solve_autoregressive_conv(LATENT, WEIGHT, direction="lower", backend="compiled")
