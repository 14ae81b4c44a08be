"""The benchmark of a GPU runs on a CPU, small."""

import json
import math

import pytest
import torch

from benchmarks import gpu

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
