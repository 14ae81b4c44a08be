"""Masked autoregressive layers: what depends on what, and their inverses, compiled and in torch."""

import math
from functools import partial

import pytest
import torch
from support.concurrency import assert_threads_may_share
from support.contract import check_inverse_gradients, images, make
from support.filters import COMPILED, NEEDS_COMPILED

from flows import InputError, NonFiniteError
from flows.layers import MaCow, MaskedAutoregressiveFlow, MaskedAutoregressiveTransform, MaskedConvTransform
from flows.measures.diagnostics import count_parameters
from flows.solvers import masked

UNBOUNDED = {"max_log_scale": None, "max_shift": None, "max_input": None}
NARROW = {"max_shift": None, "max_input": 0.7}
SOLVERS = ["torch", "jacobi", COMPILED]


def transform(num_channels, hidden_channels, solver=None, dtype=torch.float64, std=0.1, **options):
    layer = make(partial(MaskedAutoregressiveTransform, num_channels, hidden_channels, **options), std)
    layer.solver = solver
    return layer.to(dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden_channels", [3, 12])
def test_every_number_depends_on_those_before_it_and_on_all_that_the_network_can_see(hidden_channels, reverse):
    layer = transform(4, hidden_channels, reverse=reverse, std=0.5)
    jacobian = 0
    for _ in range(20):  # ReLU hides some of what there is
        x = torch.randn(1, 4, 3, 3).double()
        found = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
        jacobian = jacobian + found.reshape(4, 9, 4, 9).permute(1, 0, 3, 2).reshape(36, 36).abs()
    if reverse:
        jacobian = jacobian.flip(0, 1)
    assert not jacobian.triu(1).any()
    assert jacobian.diagonal().all()
    own_pixel = jacobian[:4, :4]
    if hidden_channels > 4:
        assert own_pixel.tril().count_nonzero() == 10
        assert jacobian[-1, :32].all(), "the last pixel of a 3x3 image sees all others"


def test_two_layers_of_opposite_order_let_every_number_see_every_other():
    layer = make(partial(MaskedAutoregressiveFlow, 3, 12), std=0.5)
    x = torch.randn(4, 3, 2, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0].sum(0).flatten(), x)
    assert jacobian.abs().amax(1).flatten(1).all()


def test_the_papers_new_layer_scales_by_sigmoid_two():
    x = torch.randn(2, 3, 4, 4)
    layer = MaskedAutoregressiveTransform(3, **UNBOUNDED)
    torch.testing.assert_close(layer(x)[0], x * torch.sigmoid(torch.tensor(2.0)))


@pytest.mark.parametrize("side", ["above", "below", "left", "right"])
def test_a_masked_convolution_sees_the_rows_of_its_filter_on_its_side(side):
    layer = make(partial(MaskedConvTransform, 2, 8, 2, 3, side=side), std=0.5)
    x = torch.randn(1, 2, 5, 5).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0][..., 2, 2], x)
    turned = {"above": 0, "right": 1, "below": 2, "left": 3}[side]
    seen = (jacobian != 0).any(dim=1)[0, :, 0].any(dim=0).rot90(turned)
    assert seen.int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0] * 5, [0] * 5]


def test_the_four_sides_together_let_every_number_see_all_around_it():
    layer = make(partial(MaCow, 2, 12), std=0.5)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0].sum(0).flatten(), images((2, 3, 3)))
    assert jacobian.abs().amax(1).flatten(1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 1, 4), (2, 3, 4, 1), (1, 3, 1, 1)])
@torch.no_grad()
def test_macow_inverts_what_is_thin_or_empty(shape):
    layer, x = make(partial(MaCow, 3, 6)), torch.randn(shape).double()
    torch.testing.assert_close(layer.inverse(layer(x)[0]), x, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_masked_convolution_keeps_what_is_not_finite_to_its_own_image():
    layer, z = make(partial(MaCow, 3, 6)), images((3, 4, 4))
    expected = layer.inverse(z)
    for value in (float("nan"), float("inf")):
        z[1, 2, 0, 3] = value
        x = layer.inverse(z)
        assert not x[1].isfinite().all()
        torch.testing.assert_close(x[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("factory", [MaCow, MaskedAutoregressiveFlow])
def test_a_unit_diagonal_leaves_shifts_alone(factory):
    layer = make(partial(factory, 3, 6, diagonal="unit"), std=0.5)
    x = images((3, 3, 4))
    assert torch.equal(layer(x)[1], layer.conv1x1(x)[1])
    assert not torch.equal(layer(x)[0], layer.conv1x1(x)[0])
    with pytest.raises(InputError, match="positive or unit"):
        factory(3, diagonal="free")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_the_inverse_of_a_masked_convolution_is_bounded_for_every_latent(dtype):
    layer = make(partial(MaskedConvTransform, 3, 12, max_log_scale=0.7, max_shift=2.0), std=3.0).to(dtype)
    z = 1e4 * torch.randn(4, 3, 6, 6, dtype=dtype)
    assert (layer.inverse(z).abs() <= (z.abs() + 2.0) * math.exp(0.7) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_the_inverse_is_bounded_for_every_latent_whatever_the_network_says(solver, dtype):
    layer = transform(3, 12, solver, dtype, std=3.0, max_log_scale=0.7, max_shift=2.0)
    z = 1e4 * torch.randn(4, 3, 6, 6, dtype=dtype)
    x = layer.inverse(z)
    assert torch.isfinite(x).all()
    assert (x.abs() <= (z.abs() + 2.0) * math.exp(0.7) * (1 + 1e-6)).all()
    papers = transform(3, 12, solver, dtype, std=3.0, **UNBOUNDED)
    assert not torch.isfinite(papers.inverse(z)).all()


def test_masked_weights_do_not_count_as_parameters():
    layer = MaskedAutoregressiveTransform(2, 4)  # degrees 0, 0, 1, 1
    first, second, last = 4 * (4 * 2) + 2, 4 * 4 - 4, 4 * (4 * 4) + 2 * 2 + 2 * 4
    assert count_parameters(layer) == first + 4 + second + 4 + last + 4


@NEEDS_COMPILED
@pytest.mark.parametrize("bounds", [{}, UNBOUNDED, NARROW], ids=["bounded", "paper", "narrow input"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("num_channels", "hidden_channels", "image_size"),
    [
        (1, 1, (1, 1)),
        (3, 2, (4, 5)),
        (4, 96, (3, 1)),
        (12, 96, (5, 6)),
        (13, 40, (1, 9)),
        (7, 33, (9, 2)),
        (48, 96, (4, 4)),
    ],
)
@torch.no_grad()
def test_every_solver_inverts(num_channels, hidden_channels, image_size, reverse, dtype, bounds):
    layer = transform(num_channels, hidden_channels, dtype=dtype, std=0.05, reverse=reverse, **bounds)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for batch in (0, 1, 2, 5, 9):
        x = torch.randn(batch, num_channels, *image_size, dtype=dtype)
        z = layer(x)[0]
        if batch == 5:
            z = z.to(memory_format=torch.channels_last)
        for solver in ("compiled", "torch", *(["jacobi"] if batch in (0, 2) else [])):
            layer.solver = solver
            torch.testing.assert_close(layer.inverse(z), x, atol=tolerance, rtol=tolerance)


@NEEDS_COMPILED
@torch.no_grad()
def test_the_number_of_threads_changes_nothing_that_matters():
    layer = transform(5, 12, "compiled")
    z = torch.randn(7, 5, 6, 5).double()
    alone = layer.inverse(z)
    torch.set_num_threads(3)
    torch.testing.assert_close(layer.inverse(z), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_what_cannot_be_inverted_is_refused(solver):
    layer, z = transform(3, 6, solver), torch.randn(2, 3, 4, 4).double()
    for value in (float("nan"), float("inf")):
        spoilt = z.clone()
        spoilt[1, 2, 0, 3] = value
        with pytest.raises(NonFiniteError, match="image 1"):
            layer.inverse(spoilt)
    with pytest.raises(InputError, match="shape"):
        layer.inverse(z[:, :2])
    with pytest.raises(InputError, match="type"):
        layer.inverse(z.float())


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_sweeps_end_at_the_fixed_point_early_or_when_the_last_number_is_right(monkeypatch, reverse):
    counts, fixed_point = [], masked.fixed_point

    def counted(step, x, depth):
        counts.append([0, depth])

        def count(x):
            counts[-1][0] += 1
            return step(x)

        return fixed_point(count, x, depth)

    monkeypatch.setattr(masked, "fixed_point", counted)
    z = torch.randn(2, 3, 6, 5).double()
    for std, options in ((0.05, {}), (1.0, {"max_log_scale": 2.0, "max_shift": None, "max_input": None})):
        layer = transform(3, 12, "jacobi", std=std, reverse=reverse, **options)
        x = layer.inverse(z)
        layer.solver = "torch"
        torch.testing.assert_close(x, layer.inverse(z), rtol=1e-9, atol=1e-9)
    (few, depth), (many, _) = counts
    assert few < many <= depth == 3 * (5 + 2 * 6 - 2)


@torch.no_grad()
def test_an_image_that_overflows_in_a_sweep_is_substituted():
    layer, z = transform(3, 12, "jacobi", torch.float32, std=3.0, **UNBOUNDED), 1e4 * torch.randn(4, 3, 6, 6)
    x = layer.inverse(z)
    layer.solver = "torch"
    assert not x.isfinite().all()
    torch.testing.assert_close(x, layer.inverse(z), equal_nan=True)


@pytest.mark.parametrize("solver", ["jacobi", COMPILED])
def test_solvers_refuse_to_lose_a_gradient_and_are_not_chosen_where_one_is_recorded(solver):
    layer = transform(2, 4, solver)
    with pytest.raises(InputError, match=f"the {solver} backend records no gradient"):
        layer.inverse(torch.randn(1, 2, 3, 3).double().requires_grad_())
    layer.solver = None
    layer.requires_grad_(False)
    check_inverse_gradients(layer, torch.randn(1, 2, 3, 2).double())


@NEEDS_COMPILED
@torch.no_grad()
def test_several_threads_may_invert_one_layer():
    layer = transform(6, 24, "compiled")
    assert_threads_may_share(layer.inverse, [torch.randn(1 + n, 6, 5, 5).double() for n in range(4)])
