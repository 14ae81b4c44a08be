"""Every layer keeps the promise of ``flows.layers.Layer``, and broken layers are caught."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from layer_table import LAYERS
from support.contract import (
    CHECKS,
    check_claims_of_the_inverse,
    check_log_det_against_autodiff,
    check_round_trips,
    check_save_and_load,
    images,
    make,
)
from torch import nn

import flows
from flows.layers import Conv1x1, Layer


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_keeps_the_contract(name, check):
    factory, shape = LAYERS[name]
    check(make(factory), images(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_survives_saving_and_loading(name):
    factory, shape = LAYERS[name]
    check_save_and_load(make(factory), factory, images(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_round_trip_is_exact_to_rounding(name):
    factory, shape = LAYERS[name]
    layer, x = make(factory, std=0.05).float(), images(shape).float()
    with torch.no_grad():
        z, log_det = layer(x)
        torch.testing.assert_close(layer.inverse(z), x, rtol=0, atol=2e-4)
    assert log_det.dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
def test_log_det_keeps_float32_under_half_precision(name):
    factory, shape = LAYERS[name]
    layer, x = factory(), images(shape).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, log_det = layer(x)
    assert log_det.dtype == torch.float32


def test_every_layer_class_has_an_entry():
    for module in pkgutil.walk_packages(flows.__path__, "flows."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)
    found = {
        cls
        for cls in _all_subclasses(Layer)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and cls.__module__.startswith("flows.")
    }
    covered = {type(factory()) for factory, _ in LAYERS.values()}
    assert found <= covered, f"add to tests/layer_table.py: {found - covered}"


def _all_subclasses(cls):
    return {cls}.union(*(_all_subclasses(child) for child in cls.__subclasses__())) if cls.__subclasses__() else {cls}


class _Scale(Layer):
    """Correct: doubles every pixel."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.7))

    def log_det(self, x):
        return (self.log_scale * x[0].numel()).expand(len(x))

    def forward(self, x):
        return x * self.log_scale.exp(), self.log_det(x)

    def inverse(self, z):
        return z * (-self.log_scale).exp()


class _ForgottenPixels(_Scale):
    def log_det(self, x):
        return (self.log_scale * x.shape[1]).expand(len(x))


class _WrongSign(_Scale):
    def log_det(self, x):
        return -super().log_det(x)


class _BatchLeak(_Scale):
    def forward(self, x):
        z, log_det = super().forward(x)
        return z + 0.1 * x.mean(dim=0), log_det


class _NoInverse(_Scale):
    def inverse(self, z):
        return z


def test_contract_accepts_a_correct_layer():
    for check in CHECKS:
        check(make(_Scale), images((2, 3, 4)))


@pytest.mark.parametrize("broken", [_ForgottenPixels, _WrongSign, _BatchLeak])
def test_contract_rejects_a_wrong_log_det(broken):
    with pytest.raises(AssertionError):
        check_log_det_against_autodiff(make(broken), images((2, 3, 4)))


def test_contract_rejects_a_wrong_inverse():
    with pytest.raises(AssertionError):
        check_round_trips(make(_NoInverse), images((2, 3, 4)))


class _NotAffine(_Scale):
    is_affine = True

    def inverse(self, z):
        return torch.sinh(z)


class _NotPixelwise(_Scale):
    is_pixelwise = True

    def inverse(self, z):
        return z.flip(3)


@pytest.mark.parametrize("broken", [_NotAffine, _NotPixelwise])
def test_contract_rejects_a_wrong_claim_of_the_inverse(broken):
    with pytest.raises(AssertionError):
        check_claims_of_the_inverse(make(broken), images((2, 3, 4)))


def test_a_class_that_replaces_the_inverse_inherits_no_claim_of_it():
    class Replaced(Conv1x1):
        def inverse(self, z):
            return super().inverse(z)

    assert Conv1x1.is_affine and Conv1x1.is_pixelwise and Conv1x1.inverse_is_capturable
    assert not (Replaced.is_affine or Replaced.is_pixelwise or Replaced.inverse_is_capturable)
