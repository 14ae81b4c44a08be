"""The promise of :class:`flows.layers.Layer`, as checks that any layer can be held to."""

import copy

import torch

from flows.models.prepared_inverse import PixelMap
from flows.numerics import in_precision
from support.weights import CHANGES, move_parameters


def make(factory, std: float = 0.1):
    """A layer in float64 with moved parameters."""
    layer = factory().double()
    move_parameters(layer, std)
    return layer


def images(shape, num_images: int = 3):
    return torch.randn(num_images, *shape, dtype=torch.float64)


def random_pixels(num_images, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_images, *shape), generator=generator, dtype=torch.uint8)


def check_shapes_and_values(layer, x):
    before = x.clone()
    z, log_det = layer(x)
    assert log_det.shape == (len(x),)
    assert log_det.dtype == torch.float64
    assert z.numel() == x.numel()
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    layer.inverse(z)
    assert torch.equal(x, before), "the input was written to"


def check_round_trips(layer, x):
    with torch.no_grad():
        z, _ = layer(x)
        torch.testing.assert_close(layer.inverse(z), x, rtol=0, atol=1e-9)
        latent = torch.randn_like(z)  # no image's
        torch.testing.assert_close(layer(layer.inverse(latent))[0], latent, rtol=0, atol=1e-9)


def check_log_det_against_autodiff(layer, x):
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x)
    num_images, dims = len(x), x[0].numel()
    jacobian = jacobian.reshape(num_images, dims, num_images, dims)
    _, log_det = layer(x)
    for i in range(num_images):
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian[i, :, i]).logabsdet, rtol=0, atol=1e-9)
        for j in range(num_images):
            assert i == j or not jacobian[i, :, j].any(), "one image has an influence on another"


def check_gradients(layer, x):
    """The input and every parameter get a finite gradient that is not zero, through map and log-det together."""
    x = x.clone().requires_grad_()
    z, log_det = layer(x)
    ((z * torch.randn_like(z)).sum() + (log_det * torch.randn_like(log_det)).sum()).backward()
    for name, tensor in [("input", x), *layer.named_parameters()]:
        assert tensor.grad is not None, f"{name} got no gradient"
        assert torch.isfinite(tensor.grad).all(), f"{name} got a gradient that is not finite"
        assert tensor.grad.any(), f"{name} got a gradient of zeros"


def check_inverse_gradients(layer, x):
    """Gradients flow back through the inverse as through the dense solve: ``d inverse(z) = J^-1 dz``."""
    z = layer(x)[0].detach().requires_grad_()
    with torch.no_grad():
        layer.inverse(z)  # what it remembers of this must not cut the gradients off
    direction = torch.randn_like(x)
    (layer.inverse(z) * direction).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters() if parameter.requires_grad)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x).reshape(x.numel(), x.numel())
    expected = torch.linalg.solve(jacobian.T, direction.flatten())
    torch.testing.assert_close(z.grad.flatten(), expected, rtol=1e-6, atol=1e-8)


def check_save_and_load(layer, factory, x):
    other = make(factory)
    with torch.no_grad():
        other.inverse(layer(x)[0])  # fill whatever it remembers with what will be stale
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    with torch.no_grad():
        z, log_det = layer(x)
        for ours, theirs in zip((z, log_det, layer.inverse(z)), (*other(x), other.inverse(z)), strict=True):
            assert torch.equal(ours, theirs), "a loaded layer is another one"


@torch.no_grad()
def check_nothing_is_stale(layer, x):
    """The inverse belongs to the weights as they are, however they came to be so, and to the image's size."""
    layer.inverse(layer(x)[0])
    for change in CHANGES:
        with torch.enable_grad():
            change(layer)
        for v in (x, x.transpose(2, 3)) if layer.image_size is None else (x,):
            error = (layer.inverse(layer(v)[0]) - v).abs().max()
            assert error < 1e-8, f"the inverse is stale after {change.__name__}"


@torch.no_grad()
def check_float32(layer, x):
    """Exact to rounding, also when it has worked in float64 before; the log-det stays float32 where autocast halves."""
    layer.inverse(layer(x)[0])
    layer, x = layer.float(), x.float()
    z, log_det = layer(x)
    torch.testing.assert_close(layer.inverse(z), x, rtol=0, atol=5e-4)
    assert log_det.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x)[1].dtype == torch.float32
    with in_precision("bf16", x.device):
        assert all(tensor.dtype == torch.float32 for tensor in layer(x))


@torch.no_grad()
def check_train_equals_eval(layer, x):
    for ours, theirs in zip(layer.train()(x), layer.eval()(x), strict=True):
        assert torch.equal(ours, theirs), "train and eval differ"


def check_claims_of_the_inverse(layer, x):
    """What the prepared inverse relies on: affine is affine, and pixelwise is one map of the channels everywhere."""
    with torch.no_grad():
        z, other = torch.randn_like(layer(x)[0]), torch.randn_like(layer(x)[0])
        if layer.is_affine:
            middle = layer.inverse((z + other) / 2)
            torch.testing.assert_close(middle, (layer.inverse(z) + layer.inverse(other)) / 2, rtol=0, atol=1e-8)
        if layer.is_pixelwise:
            torch.testing.assert_close(PixelMap.inverting(layer, z.shape[1])(z), layer.inverse(z), rtol=0, atol=1e-9)


CHECKS = [
    check_claims_of_the_inverse,
    check_shapes_and_values,
    check_round_trips,
    check_log_det_against_autodiff,
    check_gradients,
    check_inverse_gradients,
    check_train_equals_eval,
    check_nothing_is_stale,
    check_float32,
]
