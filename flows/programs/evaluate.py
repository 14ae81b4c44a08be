"""Bits/dim of a trained flow on its test split, or of a user's own images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from torch import Tensor

from flows import console, load_flow
from flows.files import atomic_write, write_csv
from flows.measures.bits_per_dim import Score, bits_per_dim
from flows.pictures import find_pictures
from flows.programs.inputs import batches, held_out, pick_device, require_positive
from flows.randomness import require_seed
from flows.runs.checkpoint import find_checkpoint
from flows.runs.layout import EVALUATIONS, run_folder_of

if TYPE_CHECKING:
    from datamodules import ImageDataModule


def evaluate(cfg: DictConfig) -> None:
    """Load, score, report; with ``images=FOLDER`` also a CSV file with one line per image."""
    require_positive(cfg, "batch_size", "num_samples")
    require_seed(cfg.seed)
    checkpoint = find_checkpoint(cfg.checkpoint)
    flow = load_flow(checkpoint, cfg.weights, pick_device(cfg.device), ("flows", *cfg.packages))
    data: ImageDataModule | None = None
    if cfg.images is None:
        data = held_out(checkpoint, cfg.packages)
        data.eval_batch_size = cfg.batch_size
        names = [str(index) for index in range(len(data.test))]
        stream: Iterable[tuple[Tensor, Tensor]] = data.test_dataloader()
        what = f"{data.set_name}, test split, {len(names):,} images"
        if data.selection_note:
            console.say(data.selection_note)
    else:
        folder = Path(cfg.images)
        paths = find_pictures(folder)
        names = [str(path.relative_to(folder)) for path in paths]
        stream = batches(paths, flow.image_shape, cfg.batch_size)
        what = f"{folder}, {len(names):,} images"

    with console.progress("evaluating", len(names)) as advance:
        scores = bits_per_dim(flow, stream, seed=cfg.seed, num_samples=cfg.num_samples, on_batch=advance)
    output = cfg.output or ("scores.csv" if cfg.images is not None else None)
    if output is not None:
        lines = [(name, f"{score:.6f}") for name, score in zip(names, scores.tolist(), strict=True)]
        write_csv(Path(output), [("file", "bits_per_dim"), *lines])
    score = Score.of(scores)
    left = [("checkpoint", checkpoint), *([("scores", Path(output))] if output else [])]
    run_dir = run_folder_of(checkpoint)
    if data is not None and run_dir is not None:
        record = run_dir / EVALUATIONS / f"{checkpoint.stem}-{cfg.weights}-K{cfg.num_samples}-seed{cfg.seed}.json"
        _write_record(record, cfg, checkpoint, data, score)
        left.append(("record", record))
    draws = "" if cfg.num_samples == 1 else f", {cfg.num_samples} noise draws an image"
    console.show_table(what, [(f"bits/dim, {cfg.weights} weights{draws}", score)])
    console.show_paths(left)


def _write_record(path: Path, cfg: DictConfig, checkpoint: Path, data: ImageDataModule, score: Score) -> None:
    """Leave the score in the run's folder, with all that says what it may be compared with, for ``report.py``."""
    record = {
        "checkpoint": str(checkpoint),
        "data": data.set_name,
        "selection_note": data.selection_note,
        "split": "test",
        "num_images": score.num_images,
        "weights": cfg.weights,
        "num_noise_samples": cfg.num_samples,
        "seed": cfg.seed,
        "bits_per_dim": score.mean,
        "standard_error": score.standard_error,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=2).encode())
