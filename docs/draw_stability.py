"""Draw how the gain of the whole inverse grows in trainings, and which share of the samples overflows.

Usage: ``python docs/draw_stability.py PICTURE.png LABEL=RUN_FOLDER ...``
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

GAIN, SHARE = "val/inverse_gain", "val/samples_not_finite"


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, gains and shares of all validations of a run."""
    with open(folder / "metrics/version_0/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[GAIN]]
    steps, gains, shares = ([float(row[name]) for row in rows] for name in ("step", GAIN, SHARE))
    return np.array(steps) + 1, np.array(gains), 100 * np.array(shares)


def main() -> None:
    """A panel for the gain, and one for the samples."""
    picture, *runs = sys.argv[1:]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for label, folder in (run.split("=", 1) for run in runs):
        steps, gains, shares = read(Path(folder))
        finite = np.isfinite(gains)
        (line,) = left.semilogy(steps[finite], gains[finite], ".-", label=label)
        infinite = steps[~finite]
        left.plot(
            infinite, np.full(len(infinite), 0.97), "^", color=line.get_color(), transform=left.get_xaxis_transform()
        )
        right.plot(steps, shares, ".-", label=label)
    left.set(title="gain of the whole inverse (triangles: infinite)", xlabel="steps")
    right.set(title="samples at temperature 1 that are not finite, %", xlabel="steps")
    left.legend()
    figure.savefig(picture, dpi=120, facecolor="white")


if __name__ == "__main__":
    main()
