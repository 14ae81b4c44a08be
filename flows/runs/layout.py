"""What a run folder holds: every name in it.

::

    config.yaml      the resolved configuration         metrics/      metrics.csv, by Lightning's CSV logger
    overrides.yaml   the command line                   checkpoints/  best.ckpt, last.ckpt, step=0000100.ckpt
    results.json     the scores of a finished run       samples/      step=0000100.png, final.png
    test_scores.csv  of each test image, and its group  evaluations/  what evaluate.py finds, a JSON file each
    .lock            whose it is; held while it writes
"""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
"""Where programs keep their runs."""

CONFIG, OVERRIDES, RESULTS, LOCK = "config.yaml", "overrides.yaml", "results.json", ".lock"
TEST_SCORES = "test_scores.csv"
METRICS, CHECKPOINTS, SAMPLES, EVALUATIONS = "metrics", "checkpoints", "samples", "evaluations"
BEST, LAST = "best.ckpt", "last.ckpt"
METRICS_FILE, FINAL_SAMPLES = "metrics.csv", "final.png"


def predecessor(step: int) -> str:
    """The name of a checkpoint that ``last.ckpt`` has replaced."""
    return f"step={step:07d}.ckpt"


PREDECESSORS = "step=*.ckpt"
"""All of these."""


def picture(step: int) -> str:
    """The name of the samples that a training draws at a step."""
    return f"step={step:07d}.png"


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.resolve().parent.parent
    return folder if checkpoint.parent.name == CHECKPOINTS and (folder / CONFIG).is_file() else None
