"""The benchmark of a GPU runs on a CPU, small; the comparison of mixing layers is fair, and its errors are right."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from hydra import initialize_config_dir
from support.configs import CONF, compose

from benchmarks import comparison, gpu
from flows.config.matching import resolve_width

WITH_A_COST = ("compiled", "two processes", "tests that need a GPU")
"""Rows that take long on a CPU too, and run what other tests run."""


@pytest.mark.slow
def test_rows_of_the_gpu_benchmark_run_on_a_cpu():
    for row, measure in gpu.Bench(torch.device("cpu")).rows():
        if not any(name in row.what for name in WITH_A_COST):
            assert 0 < measure() < math.inf, row.what


def test_the_gpu_benchmark_ends_in_time_and_a_row_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def fail():
        raise RuntimeError("out of memory\nand more")

    rows = [(gpu.Row("one", target=1.0), fail), (gpu.Row("two", target=1.0), lambda: 2.0)]
    monkeypatch.setattr(gpu.Bench, "rows", lambda bench: iter(rows))
    command = ["--device", "cpu", "--output", str(tmp_path / "gpu.json")]
    with pytest.raises(SystemExit, match="1"):
        gpu.main(command)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert ["one", "RuntimeError: out of memory"] in [[cell for cell in line if cell][:2] for line in lines]
    assert [row["figure"] for row in json.loads((tmp_path / "gpu.json").read_text())["results"]] == [None, 2.0]
    assert rows[1][0].is_missed
    rows[0] = (gpu.Row("one"), fail)
    gpu.main([*command, "--minutes", "0"])
    assert capsys.readouterr().out.count("no time was left") == 1


@pytest.mark.parametrize("name", comparison.LAYERS)
def test_a_layer_of_the_comparison_has_as_many_parameters_as_the_1x1(name):
    shared = [*comparison.SHARED, *comparison.LEAN, *comparison.EQUAL_PARAMETERS]
    config = compose("data=photos", *comparison.LAYERS[name], *shared)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        said = resolve_width(config)
    assert abs(float(re.search(r"\((\S+) %\)", said)[1])) < 1


def test_differences_are_paired_by_seed_and_their_errors_are_over_seeds_and_over_blocks():
    def run(seed, *scores):
        return SimpleNamespace(seed=seed, test_scores={"group": torch.tensor([0, 0, 1]), "raw": torch.tensor(scores)})

    baseline = [run(1, 3.0, 4.0, 5.0), run(2, 6.0, 7.0, 8.0), run(3, 0.0, 0.0, 0.0)]
    runs = [run(2, 5.9, 6.9, 7.9), run(1, 2.7, 3.7, 4.7)]
    assert comparison.difference(runs, baseline) == "-0.200 ± 0.100 ± 0.000"
    runs = [run(1, 3.0, 4.0, 8.0)]  # the group of one image differs by 3
    assert comparison.difference(runs, baseline) == "+1.000 ± nan ± 1.333"
