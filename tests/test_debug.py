"""``debug=fast | overfit | profiler | anomaly``: each shows what it promises."""

import csv
import json

import pytest
from support.forks import fork, output, wait
from support.small_training import ShuffledEmerging, fit, flow

from flows import Flow, NonFiniteError
from flows.layers import AffineCoupling
from flows.layers.base import Layer
from flows.training.callbacks import StopAtLayer
from flows.training.profiler import TimeTable

TINY = ["data=digits", "trainer=cpu", "model.num_levels=2", "model.num_steps=1", "model.hidden_channels=16"]


def trained(folder, *arguments):
    """The results of a run with a tiny model, and the bits/dim of its training steps."""
    assert wait(fork([*TINY, *arguments, "run_dir=run"], folder)) == 0, output(folder)
    rows = csv.DictReader((folder / "run/metrics/version_0/metrics.csv").open())
    losses = [float(row["train/bits_per_dim"]) for row in rows if row["train/bits_per_dim"]]
    return json.loads((folder / "run/results.json").read_text()), losses


@pytest.mark.slow
def test_fast_takes_a_few_batches_of_each_split(tmp_path):
    results, losses = trained(tmp_path, "debug=fast", "recipe=laptop", "data.eval_batch_size=20")
    assert len(losses) == results["steps"] == 3
    assert results["num_images"] == 20
    assert results["val/bits_per_dim"] > 0


@pytest.mark.slow
def test_overfit_learns_the_same_images_by_heart(tmp_path):
    _, losses = trained(tmp_path, "debug=overfit", "data.num_channels=1", "trainer.max_epochs=2")
    assert losses[-1] < losses[0] - 2


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_profiler_counts_every_second_once(memory, tmp_path):
    model = flow()
    model.memory = memory
    fit(tmp_path, model=model, profiler=(table := TimeTable()))
    rows = {line[:40].strip(): float(line[40:49]) for line in table.summary().splitlines()[1:]}
    assert {"forward  GlowNetwork", "backward GlowNetwork", "forward  AutoregressiveConv2d"} <= set(rows)
    assert sum(rows.values()) == pytest.approx(2 * rows["in all"], abs=0.1)
    assert max(map(len, table.summary().splitlines())) <= 80


class BreaksBackwards(Layer):
    """The identity, whose gradient is 0 times infinity."""

    def forward(self, x):
        return x + (0 * x).sqrt(), x.new_zeros(len(x))

    def inverse(self, z):
        return z


@pytest.mark.parametrize("memory", ["store", "invert"])
def test_anomaly_names_the_layer_whose_gradient_breaks(memory, tmp_path):
    def mixing(num_channels):
        layers = ShuffledEmerging(num_channels)
        layers.layers.append(BreaksBackwards())
        return layers

    model = Flow((1, 4, 4), mixing, AffineCoupling, num_levels=1, num_steps=2, hidden_channels=4, memory=memory)
    with pytest.raises(NonFiniteError, match=r"backward pass of layer flow\.levels\.0\.layers\.2\.mixing\.layers\.2;"):
        fit(tmp_path, [StopAtLayer()], model)
