"""The benchmark of a GPU runs to its end on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_row_of_the_gpu_benchmark_runs_small_on_a_cpu(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--threads", "1", "--output", str(output)]
    result = subprocess.run([*command, "--minutes", "5"], cwd=ROOT, capture_output=True, text=True, timeout=500)
    rows = json.loads(output.read_text())["results"]
    failed = {row["what"]: row["note"] for row in rows if row["failed"]}
    assert not failed
    assert result.returncode == 0
    assert {row["what"] for row in rows} <= {line.split("  ")[0].strip() for line in result.stdout.splitlines()}
    assert all(row["figure"] is not None for row in rows)
