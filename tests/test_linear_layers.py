"""What the linear mixing layers are, beside what the contract asks of every layer."""

import pytest
import torch
from support.contract import images, make
from torch.nn.functional import conv2d

from flows.errors import InputError
from flows.layers import (
    AutoregressiveConv2d,
    Butterfly,
    Conv1x1,
    ConvExp,
    FIncConv2d,
    Inverted,
    OrthogonalMatrix,
    PeriodicConv2d,
    SVDMatrix,
    WoodburyConv2d,
)
from flows.layers.coupling import AffineCoupling
from flows.layers.maf import MaskedAutoregressiveFlow


def dense(function, shape):
    """The matrix of a linear map of images."""
    size = torch.Size(shape).numel()
    return function(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


@pytest.mark.parametrize(("shape", "kernel_size"), [((2, 4, 5), 3), ((3, 1, 4), 3), ((1, 3, 2), 7)])
def test_the_exponential_is_that_of_the_matrix_whose_norm_is_bounded(shape, kernel_size):
    layer = make(lambda: ConvExp(shape[0], kernel_size, bias=False), std=1.0)
    with torch.no_grad():
        kernel = layer.filter(shape[1:])
        exponent = dense(lambda x: conv2d(x, kernel, padding="same"), shape)
        assert torch.linalg.matrix_norm(exponent, 2) <= layer.max_norm
        torch.testing.assert_close(dense(lambda x: layer(x)[0], shape), torch.matrix_exp(exponent), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "factory",
    [
        lambda: ConvExp(3, symmetry="skew", bias=False),
        *(
            lambda name=name: Conv1x1(3, lambda c: OrthogonalMatrix(c, name))
            for name in ("cayley", "expm", "householder")
        ),
        lambda: PeriodicConv2d(3, orthogonal=True),
        lambda: PeriodicConv2d(3, orthogonal=True, boundary="reflect"),
    ],
)
def test_an_orthogonal_layer_keeps_lengths(factory):
    layer = make(factory, std=0.5)
    with torch.no_grad():
        matrix = dense(lambda x: layer(x)[0] - layer(torch.zeros_like(x))[0], (3, 4, 5))
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(60, dtype=torch.float64), atol=1e-12, rtol=0)


def test_singular_values_are_bounded():
    layer = make(lambda: SVDMatrix(4, max_log_scale=0.5), std=10.0)
    values = torch.linalg.svdvals(layer.matrix())
    assert values.log().abs().max() * (1 + 1e-9) + 1e-9 > 0.5
    assert values.log().abs().max() <= 0.5 + 1e-9


def test_mirrors_connect_no_opposite_borders():
    layer = make(lambda: PeriodicConv2d(1, boundary="reflect"))
    x = images((1, 6, 6), 1)
    with torch.no_grad():
        changed = x.clone()
        changed[..., 0, 0] += 1.0
        moved = (layer(changed)[0] != layer(x)[0])[0, 0]
    assert moved.nonzero().max() == 1


def test_each_quarter_reads_from_its_corner():
    layer = make(lambda: FIncConv2d(4, kernel_size=2))
    with torch.no_grad():
        layer.conv1x1.weight.weight.copy_(torch.eye(4))
        x = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
        x[:, :, 2, 2] = 1.0
        seen = (layer(x)[0] - layer(torch.zeros_like(x))[0])[0] != 0
    corners = {tuple(map(tuple, quarter.nonzero().tolist())) for quarter in seen}
    assert corners == {((i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)) for i in (1, 2) for j in (1, 2)}


@pytest.mark.parametrize(("diagonal", "log_det"), [("unit", 0.0), ("positive", 20 * 0.3)])
def test_the_diagonal_is_kept_positive_or_one(diagonal, log_det):
    layer = make(lambda: AutoregressiveConv2d(3, diagonal=diagonal), std=0.5)
    with torch.no_grad():
        layer.weight[:, :, 0, 0].fill_diagonal_(0.1)  # the centre is the first tap that the filter has
        assert (layer.filter()[:, :, 1, 1].diagonal() > 0).all()
    torch.testing.assert_close(layer(images((3, 4, 5)))[1], torch.full((3,), log_det, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make_wrong", "words"),
    [
        (lambda: ConvExp(2, symmetry="odd"), "symmetry"),
        (lambda: FIncConv2d(6), "divisible by 4"),
        (lambda: AutoregressiveConv2d(3, groups=2), "groups"),
        (lambda: AutoregressiveConv2d(3, diagonal="one"), "diagonal"),
        (lambda: PeriodicConv2d(2, boundary="zero"), "boundary"),
        (lambda: OrthogonalMatrix(2, "qr"), "orthogonal_map"),
        (lambda: Butterfly(3, (1, 1)), "num_levels"),
        (lambda: Butterfly(4, (2, 3))(torch.zeros(1, 4, 3, 2)), "2 x 3 pixels, not 3 x 2"),
        (lambda: WoodburyConv2d(4, (2, 3)).inverse(torch.zeros(1, 4, 3, 2)), "2 x 3 pixels"),
        (lambda: WoodburyConv2d(4, (2, 3), 0), "rank"),
        (lambda: Inverted(4, MaskedAutoregressiveFlow), "affine"),
        (lambda: Inverted(4, AffineCoupling), "affine"),
    ],
)
def test_wrong_arguments_are_refused(make_wrong, words):
    with pytest.raises(InputError, match=words):
        make_wrong()
