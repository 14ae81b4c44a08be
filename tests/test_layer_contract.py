"""Every layer keeps the promise of ``flows.layers.Layer``, and broken layers are caught."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from layer_table import LAYERS
from support import contract
from support.contract import CHECKS, images, make
from torch import nn

import flows
from flows.layers import AutoregressiveConv2d, Conv1x1, Layer


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_keeps_the_contract(name, check):
    factory, shape = LAYERS[name]
    check(make(factory), images(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_survives_saving_and_loading(name):
    factory, shape = LAYERS[name]
    contract.check_save_and_load(make(factory), factory, images(shape))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_inverts_in_float32_after_it_has_learned_to_whiten(name):
    factory, shape = LAYERS[name]
    layer, x = factory(), torch.randn(32, 1, 1, 1) + 0.2 * torch.randn(32, *shape)
    if parameters := list(layer.parameters()):
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        for _ in range(12):
            z, log_det = layer(x)
            optimizer.zero_grad()
            (0.5 * z.square().flatten(1).sum(dim=1) - log_det).mean().backward()
            optimizer.step()
    with torch.no_grad():
        error = (layer.inverse(layer(x)[0]) - x).abs().max() / x.abs().max()
    assert error <= 1e-5


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


class _BatchLeak(_Scale):
    def forward(self, x):
        z, log_det = super().forward(x)
        return z + 0.1 * x.mean(dim=0), log_det


class _NoInverse(_Scale):
    def inverse(self, z):
        return z


class _WrittenInput(_Scale):
    def forward(self, x):
        return x.mul_(self.log_scale.exp()), self.log_det(x)


class _DeadGradient(_Scale):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))

    def log_det(self, x):
        return super().log_det(x) + 0 * self.unused.sum()


class _GradientCutOff(_Scale):
    def inverse(self, z):
        return super().inverse(z.detach()) + 0 * z


class _TrainIsNotEval(_Scale):
    def forward(self, x):
        z, log_det = super().forward(x)
        return z + self.training, log_det


class _Stale(_Scale):
    def inverse(self, z):
        self.remembered = getattr(self, "remembered", self.log_scale.exp().detach().clone())
        return z / self.remembered


class _NotSaved(_Scale):
    def __init__(self):
        super().__init__()
        self.shift = torch.randn(())

    def forward(self, x):
        z, log_det = super().forward(x)
        return z + self.shift, log_det


class _CoarseLogDet(_Scale):
    def log_det(self, x):
        return super().log_det(x).to(torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)


class _NotAffine(_Scale):
    is_affine = True

    def inverse(self, z):
        return torch.sinh(z)


class _NotPixelwise(_Scale):
    is_pixelwise = True

    def inverse(self, z):
        return z.flip(3)


BROKEN = {
    _ForgottenPixels: contract.check_log_det_against_autodiff,
    _BatchLeak: contract.check_log_det_against_autodiff,
    _NoInverse: contract.check_round_trips,
    _WrittenInput: contract.check_shapes_and_values,
    _DeadGradient: contract.check_gradients,
    _GradientCutOff: contract.check_inverse_gradients,
    _TrainIsNotEval: contract.check_train_equals_eval,
    _Stale: contract.check_nothing_is_stale,
    _NotSaved: contract.check_save_and_load,
    _CoarseLogDet: contract.check_float32,
    _NotAffine: contract.check_claims_of_the_inverse,
    _NotPixelwise: contract.check_claims_of_the_inverse,
}


def test_contract_accepts_a_correct_layer():
    for check in CHECKS:
        check(make(_Scale), images((2, 3, 4)))
    contract.check_save_and_load(make(_Scale), _Scale, images((2, 3, 4)))


@pytest.mark.parametrize(("broken", "check"), BROKEN.items(), ids=lambda value: value.__name__)
def test_contract_rejects_what_is_broken(broken, check):
    further = [broken] if check is contract.check_save_and_load else []
    with pytest.raises(AssertionError):
        check(make(broken), *further, images((2, 3, 4)))


def test_a_class_that_replaces_a_direction_inherits_no_claim_of_it():
    class OtherInverse(Conv1x1):
        def inverse(self, z):
            return super().inverse(z)

    class OtherForward(AutoregressiveConv2d):
        def forward(self, x):
            return super().forward(x)

    assert Conv1x1.is_affine and Conv1x1.is_pixelwise and Conv1x1.inverse_is_capturable
    assert not (OtherInverse.is_affine or OtherInverse.is_pixelwise or OtherInverse.inverse_is_capturable)
    assert AutoregressiveConv2d.absorbs_pixel_maps and not OtherForward.absorbs_pixel_maps
