"""Draw what the dashboard of a run shows, from the TensorBoard file that the run left (``logger=tensorboard``).

Usage: ``python docs/draw_dashboard.py RUN_FOLDER PICTURE.png``
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = {
    "bits/dim": ["train/bits_per_dim", "val/bits_per_dim", "val/bits_per_dim_averaged"],
    "learning rate": ["lr-Adamax"],
    "gradient norm": ["train/gradient_norm"],
    "images/s": ["train/images_per_second"],
    "memory, GiB": ["memory/process_gib"],
    "gain of the inverse": ["val/inverse_gain", "val/mixing_gain"],
    "round-trip error, grey levels": ["val/round_trip_error", "val/round_trip_error_unusual"],
    "latents' mean": ["latents/mean_level_1", "latents/mean_level_2"],
    "latents' standard deviation": ["latents/std_level_1", "latents/std_level_2"],
}


def draw_curves(axes: Axes, events: EventAccumulator, title: str, names: list[str]) -> None:
    """Some figures over the steps."""
    for name in names:
        points = events.Scalars(name)
        values = [point.value for point in points]
        axes.plot([point.step for point in points], values, label=name, marker="." if len(points) < 20 else "")
    axes.set_title(title)
    if len(names) > 1:
        axes.legend(fontsize=7)


def draw_samples(axes: Axes, events: EventAccumulator) -> None:
    """The last samples, a row for each temperature."""
    rows = {tag.split()[-1]: events.Images(tag)[-1] for tag in sorted(events.Tags()["images"])}
    pictures = [np.asarray(Image.open(io.BytesIO(row.encoded_image_string))) for row in rows.values()]
    axes.imshow(np.concatenate(pictures))
    height = len(pictures[0])
    axes.set_yticks([height * (row + 0.5) for row in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.set_ylabel("temperature")
    axes.set_title(f"samples, step {next(iter(rows.values())).step}")


def main(run_folder: Path, picture: Path) -> None:
    """Draw everything on one sheet."""
    folders = sorted(path.parent for path in run_folder.glob("tensorboard/*/events.*"))
    events = EventAccumulator(str(folders[-1]), size_guidance={"scalars": 0, "images": 0}).Reload()
    figure, axes = plt.subplots(3, 4, figsize=(14, 9), layout="constrained")
    for (title, names), place in zip(CURVES.items(), axes.flat, strict=False):
        draw_curves(place, events, title, names)
    for place in axes[2, 1:]:
        place.remove()
    draw_samples(figure.add_subplot(axes[2, 1].get_subplotspec().get_gridspec()[2, 1:]), events)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
