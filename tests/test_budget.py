"""Equal budgets: the width found is the nearest one, of parameters and of time, and the paper's own pairs come out."""

import pytest
from hydra import initialize_config_dir
from support import configs
from support.configs import CONF, compose

from flows import Flow, InputError
from flows.config.matching import resolve_width
from flows.layers import AffineCoupling, Conv1x1, EmergingConv2d, PeriodicConv2d
from flows.measures.budget import MAX_MEASUREMENTS, ParameterCount, width_of_equal_time
from flows.measures.diagnostics import count_parameters
from flows.models.priors import LEARNED, StandardPrior


def flow_of(mixing, num_levels, num_steps, prior=LEARNED):
    return lambda width: Flow((3, 32, 32), mixing, AffineCoupling, num_levels, num_steps, width, prior=prior)


@pytest.mark.parametrize("name", configs.MIXINGS)
def test_the_polynomial_counts_every_width(name):
    make_flow = flow_of(configs.mixing(name), num_levels=2, num_steps=1)
    count = ParameterCount.of(make_flow)
    for width in (5, 16, 33):
        assert count(width) == count_parameters(make_flow(width))


@pytest.mark.parametrize(
    ("mixing", "num_levels", "num_steps", "prior", "papers", "width", "parameters"),
    [  # the paper counts 82,944 more wherever the prior is learned: a convolution that it computes and does not use
        (EmergingConv2d, 2, 8, StandardPrior(), 6_300_960, 510, 6_300_960),
        (EmergingConv2d, 3, 8, LEARNED, 11_216_628 - 82_944, 507, 11_218_116 - 82_944),
        # a periodic filter has 9 C^2 entries; emerging 8 C^2 + C: a 1x1, and two halves whose centre is a triangle
        (PeriodicConv2d, 2, 8, StandardPrior(), 6_300_960, 510, 6_300_960 + 8 * (12**2 - 12 + 24**2 - 24)),
    ],
)
def test_the_paper_s_pairs(mixing, num_levels, num_steps, prior, papers, width, parameters):
    budget = count_parameters(flow_of(Conv1x1, num_levels, num_steps, prior)(512))
    assert budget == papers
    count = ParameterCount.of(flow_of(mixing, num_levels, num_steps, prior))
    assert count.width_for(budget) == width
    assert count(width) == parameters


def test_the_width_is_the_nearest_one():
    count = ParameterCount(2, 0, 2)  # 1 + w^2
    assert [count.width_for(budget) for budget in (2, 3, 4, 5, 7, 8, 101, 110, 112)] == [1, 1, 2, 2, 2, 3, 10, 10, 11]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden_channels=match"], "needs a budget"),
        (["budget=1000000"], "is for model.hidden_channels=match"),
        (["model.hidden_channels=match", "budget=10"], "no width has 10 parameters"),
        (["model.hidden_channels=match", "budget=lots"], "like conv1x1@512"),
        (["model.hidden_channels=match", "budget=conv2x2@64"], "there is no mixing=conv2x2"),
    ],
)
def test_impossible_budgets_are_named(overrides, words):
    with pytest.raises(InputError, match=words):
        found("model.num_steps=1", *overrides)


def found(*overrides):
    config = compose(*overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        line = resolve_width(config)
    return config["model"]["hidden_channels"], line


def test_a_number_and_a_model_name_the_same_budget():
    match = ["mixing=emerging", "model.num_steps=2", "model.hidden_channels=match"]
    reference = count_parameters(flow_of(Conv1x1, 2, 2)(64))
    width, line = found(*match, "budget=conv1x1@64")
    assert found(*match, f"budget={reference}")[0] == width
    assert f"for a budget of {reference:,} (conv1x1@64)" in line
    assert width < 64


def test_an_ordinary_width_stays():
    assert found("model.hidden_channels=48") == (48, None)


def timed(constant, linear, quadratic, disturbed=()):
    """Ratios of the time that a polynomial says, 30 % more at each call that is disturbed; and the widths asked for."""
    asked = []

    def ratio_at(width):
        asked.append(width)
        return (constant + linear * width + quadratic * width**2) * (1.3 if len(asked) - 1 in disturbed else 1)

    return ratio_at, asked


@pytest.mark.parametrize(
    ("constant", "linear", "quadratic", "width"),
    [
        (0.25, 0.0, 3e-4, 50),
        (0.5, 0.0, 2e-4, 50),
        (0.2, 4e-3, 0.0, 200),  # wider than the reference
        (0.3, 1e-3, 1e-5, 219),
        (0.0, 1 / 64, 0.0, 64),  # the reference itself
        (0.99, 0.0, 0.01, 1),
    ],
)
def test_a_width_of_equal_time_is_found_by_few_measurements(constant, linear, quadratic, width):
    ratio_at, asked = timed(constant, linear, quadratic)
    assert width_of_equal_time(ratio_at, 64, tolerance=1e-3) == width
    assert len(asked) <= 6
    assert len(set(asked)) == len(asked)


def test_a_measurement_that_is_disturbed_does_not_mislead_the_search():
    for call in range(1, 4):  # the first says whether there is such a width
        ratio_at, _ = timed(0.25, 0.0, 3e-4, disturbed=[call])
        found = width_of_equal_time(ratio_at, 64, tolerance=0.02)
        assert abs(timed(0.25, 0.0, 3e-4)[0](found) - 1) < 0.05


def test_time_that_is_no_parabola_is_found_as_well():
    def ratio_at(width):
        return 0.2 + 0.8 * (width / 50) ** 3

    assert width_of_equal_time(ratio_at, 128, tolerance=1e-3) == 50


def test_where_time_jumps_the_nearer_side_is_found():
    asked = []

    def ratio_at(width):
        asked.append(width)
        return 0.2 + width / 100 if width < 50 else 1.06 + width / 1000

    assert width_of_equal_time(ratio_at, 64, tolerance=0.02) >= 50  # at 1.11, which is nearer than 0.69
    assert len(asked) <= MAX_MEASUREMENTS


def test_what_is_slower_at_any_width_has_no_width_of_equal_time():
    ratio_at, asked = timed(1.1, 0.0, 1e-4)
    assert width_of_equal_time(ratio_at, 64, tolerance=0.02) is None
    assert asked == [1]
