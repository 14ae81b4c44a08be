"""The end of a run: the best checkpoint scored on the test images, samples from it, and what is left to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules import ImageDataModule
from datamodules.loading.datasets import ImageDataset, Subset
from flows import console, load_flow
from flows.files import atomic_write, write_csv
from flows.measures.bits_per_dim import Score, bits_per_dim
from flows.measures.codecs import codec_bits_per_dim
from flows.measures.cost import Cost
from flows.measures.diagnostics import count_not_finite, count_parameters
from flows.models.base import DensityModel
from flows.pictures import save_png, sheet, side_by_side
from flows.runs.checkpoint import Weights, find_checkpoint, read_checkpoint
from flows.runs.layout import FINAL_SAMPLES, METRICS, METRICS_FILE, RESULTS, SAMPLES, TEST_SCORES

MAX_CODEC_IMAGES = 2000
"""The codecs are slow: of a larger test split this number of images, evenly spaced, stands for all."""

NUM_SAMPLES = 1000
"""Samples at temperature 1 that are looked at in the end."""

Rows = list[tuple[str, Any]]


def conclude(
    run_dir: Path,
    trainer: pl.Trainer,
    data: ImageDataModule,
    validation: Mapping[str, float],
    packages: Sequence[str],
    cost: Cost,
) -> None:
    """Score the best checkpoint on the test split, draw samples from it, and report.

    Args:
        run_dir: the run's folder.
        trainer: of the training.
        data: the run's.
        validation: the scores of the best checkpoint, by their names.
        packages: that its layers may come from, besides ``flows``.
        cost: of the training.

    Raises:
        StorageError: something cannot be written.
    """
    data.test = _limited(data, trainer)
    checkpoint, device = find_checkpoint(run_dir), trainer.strategy.root_device
    load = partial(load_flow, checkpoint, device=device, packages=("flows", *packages))
    scores, scored, of_images = _score(checkpoint, load, data)
    flow = load()
    codecs, compared = _compress(flow, data)
    sheets = _sheets_of_samples(flow)
    size = count_parameters(flow)
    facts: Rows = [("parameters", f"{size:,}"), *cost.rows()]
    # First of all: the disk may be full.
    held_out = Score.of(of_images["raw"], data.test.groups)
    title = f"Best checkpoint, test split: {held_out.what_counts}"
    console.show_table(title, [*scored[:-1], *compared, scored[-1], *facts])
    results: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": data.set_name,
        "selection_note": data.selection_note,
        "split": "test",
        "num_images": held_out.num_images,
        "num_groups": held_out.num_groups,
        "num_noise_samples": 1,
        "num_samples": NUM_SAMPLES,
        "val/bits_per_dim": None,
        **validation,
        **scores,
        **codecs,
        "num_parameters": size,
        **cost.as_results(),
        "steps": trainer.global_step,
    }
    tested = {key: value for key, value in results.items() if key.startswith("test/")}
    for logger in trainer.loggers:
        logger.log_metrics(tested, step=trainer.global_step)
        logger.finalize("finished")
    groups = range(len(data.test)) if data.test.groups is None else data.test.groups.tolist()
    columns = [groups, *(column.tolist() for column in of_images.values())]
    write_csv(run_dir / TEST_SCORES, [["group", *of_images], *zip(*columns, strict=True)])
    with atomic_write(run_dir / RESULTS) as file:
        file.write(json.dumps(results, indent=2).encode())
    save_png(side_by_side(sheets), run_dir / SAMPLES / FINAL_SAMPLES)
    paths = {
        "checkpoint": checkpoint,
        "samples": run_dir / SAMPLES / FINAL_SAMPLES,
        "results": run_dir / RESULTS,
        "log": run_dir / METRICS / "version_0" / METRICS_FILE,
    }
    console.show_paths((name, path) for name, path in paths.items() if path.exists())


def _limited(data: ImageDataModule, trainer: pl.Trainer) -> ImageDataset:
    """The test images, or those of the first batches as ``trainer.limit_test_batches`` says it."""
    limit, images = trainer.limit_test_batches, data.test
    count = int(limit * len(images)) if isinstance(limit, float) else limit * data.eval_batch_size
    return images if count >= len(images) else Subset(images, torch.arange(count))


def _score(
    checkpoint: Path, load: Callable[..., DensityModel], data: ImageDataModule
) -> tuple[dict[str, Any], Rows, dict[Weights, Tensor]]:
    """Bits/dim on the test split, and how many samples are not finite, of all the weights that were kept.

    Returns:
        The results, the rows that show them, and the bits/dim of each image, in order.
    """
    has_average = "current_model_state" in read_checkpoint(checkpoint)
    kept: tuple[Weights, ...] = ("raw", "averaged") if has_average else ("raw",)
    results: dict[str, Any] = {}
    rows: Rows = []
    of_images: dict[Weights, Tensor] = {}
    unsafe = []
    for weights in kept:
        suffix = "" if weights == "raw" else "_averaged"
        flow = load(weights=weights)
        with console.progress(f"test, {weights} weights", len(data.test)) as advance:
            of_images[weights] = bits_per_dim(flow, data.evaluation_batches(data.test), on_batch=advance)
        score = Score.of(of_images[weights], data.test.groups)
        name = f"test/bits_per_dim{suffix}"
        results[name], results[f"{name}_standard_error"] = score.mean, score.standard_error
        rows.append((f"test bits/dim, {weights} weights", score))
        results[f"samples_not_finite{suffix}"] = lost = count_not_finite(flow, NUM_SAMPLES)
        unsafe.append(f"{lost} {weights}")
    rows.append((f"samples that are not finite, of {NUM_SAMPLES:,} at temperature 1", ", ".join(unsafe)))
    return results, rows, of_images


def _compress(flow: DensityModel, data: ImageDataModule) -> tuple[dict[str, Any], Rows]:
    """What picture files need for the test images, or for some of them."""
    count = min(len(data.test), MAX_CODEC_IMAGES)
    images = data.test.gather([index * len(data.test) // count for index in range(count)])
    images = flow.dequantizer.reduce(images)  # the bits that the flow models, no more
    which = "the same images" if count == len(data.test) else f"{count:,} of these images"
    png, webp = (float(codec_bits_per_dim(images, codec).mean()) for codec in ("png", "webp"))
    rows: Rows = [(f"PNG bits/dim on {which}", f"{png:.3f}"), (f"lossless WebP bits/dim on {which}", f"{webp:.3f}")]
    return {"test/png_bits_per_dim": png, "test/webp_bits_per_dim": webp}, rows


def _sheets_of_samples(flow: DensityModel) -> list[Tensor]:
    """A sheet of samples at temperature 1, and one of the same latents at temperature 0.7."""
    sheets = []
    for temperature in (1.0, 0.7):
        latents = flow.sample_latents(64, temperature, torch.Generator().manual_seed(0))
        images, finite = flow.decode_finite(latents)
        sheets.append(sheet(images, 8, finite, title=f"temperature {temperature:g}"))
    return sheets
