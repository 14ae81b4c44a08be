"""Bits/dim of a trained flow on a split of a data set, or of a user's own pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from flows import console, load_flow
from flows.config.building import build
from flows.errors import InputError
from flows.files import atomic_write, growing_csv
from flows.measures.bits_per_dim import Score, bits_per_dim
from flows.measures.codecs import CODEC_OPTIONS, codec_bits_per_dim
from flows.models.base import DensityModel
from flows.numerics import require_precision
from flows.programs.inputs import Pictures, data_of_run, numbers_of, pick_device, ready, require_positive, spread
from flows.randomness import require_seed
from flows.runs.checkpoint import find_checkpoint
from flows.runs.layout import EVALUATIONS, run_folder_of

if TYPE_CHECKING:
    from datamodules import ImageDataModule

SPLITS = ("train", "val", "test")

COLUMNS = ("file", "bits_per_dim", "png_bits_per_dim", "webp_bits_per_dim", "rank_in_validation")

MAX_RANKED = 1000
"""Of a larger validation split this number of images, evenly spaced, stands for all."""

Batch = tuple[Sequence[object], Tensor, Tensor]
"""Names, images and the numbers of their noise."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""From images and the numbers of their noise to bits/dim, ``(B,)``."""


def evaluate(cfg: DictConfig) -> None:
    """Load, score, report; with ``images=FOLDER`` or ``output=FILE`` also a CSV file with one line per image."""
    require_positive(cfg, "batch_size", "num_samples")
    require_seed(cfg.seed)
    require_precision(cfg.precision)
    if cfg.split not in SPLITS:
        raise InputError(f"split must be train, val or test, not '{cfg.split}'")
    if cfg.images is not None and cfg.data is not None:
        raise InputError("images= and data= both say what is scored: give one of them")
    checkpoint = find_checkpoint(cfg.checkpoint)
    flow = load_flow(checkpoint, cfg.weights, pick_device(cfg.device), ("flows", *cfg.packages))

    def measure(images: Tensor, numbers: Tensor) -> Tensor:
        return bits_per_dim(
            flow, [(images, numbers)], seed=cfg.seed, num_samples=cfg.num_samples, precision=cfg.precision
        )

    if cfg.images is None:
        data = _data_to_score(cfg, checkpoint, flow)
        num_images = len(getattr(data, cfg.split))
        groups = getattr(data, cfg.split).groups
        columns = _scores(measure, _of_split(data, cfg.split), num_images, cfg.output, flow, checkpoint, cfg.packages)
        scores = [Score.of(column, groups) for column in columns]
        what = f"{data.set_name}, {cfg.split} split, {scores[0].what_counts}"
        _show(cfg, what, checkpoint, scores, cfg.output, _record(cfg, checkpoint, data, scores[0]))
    else:
        pictures = Pictures(Path(cfg.images), checkpoint, flow, cfg.value_range, cfg.as_is, cfg.packages)
        output = cfg.output or "scores.csv"
        batches = _of_pictures(pictures, cfg.batch_size)
        columns = _scores(measure, batches, len(pictures.paths), output, flow, checkpoint, cfg.packages)
        pictures.tell()
        scores = [Score.of(column) for column in columns]
        _show(cfg, f"{cfg.images}, {columns.shape[1]:,} pictures", checkpoint, scores, output, None)


def _data_to_score(cfg: DictConfig, checkpoint: Path, flow: DensityModel) -> ImageDataModule:
    """The run's own data set, or another one, ready for use."""
    if cfg.data is None:
        data = data_of_run(checkpoint, cfg.packages)
    else:
        config: Any = OmegaConf.to_container(cfg.data, resolve=True)
        data = build(config)
        if data.image_shape != flow.image_shape:
            found, wanted = (" x ".join(map(str, shape)) for shape in (data.image_shape, flow.image_shape))
            raise InputError(
                f"the images of {config['_target_']} are {found}, but the model's {wanted}: set data.image_size and "
                "data.num_channels, where the data set allows it"
            )
    data.eval_batch_size = cfg.batch_size
    ready(data)
    if data.selection_note:
        console.say(data.selection_note)
    return data


def _of_split(data: ImageDataModule, split: str) -> Iterator[Batch]:
    for images, indices in data.evaluation_batches(getattr(data, split)):
        yield indices.tolist(), images, indices


def _of_pictures(pictures: Pictures, batch_size: int) -> Iterator[Batch]:
    for paths, images in pictures.batches(batch_size):
        yield [path.relative_to(pictures.folder) for path in paths], images, numbers_of(images)


def _scores(
    measure: Measure,
    batches: Iterable[Batch],
    num_images: int,
    output: str | None,
    flow: DensityModel,
    checkpoint: Path,
    packages: Sequence[str],
) -> Tensor:
    """Bits/dim of each image, ``(1, N)``; if a CSV file is to be written, all of its numbers, ``(2 to 4, N)``."""
    with console.progress("evaluating", num_images) as advance:
        if output is None:
            scores = []
            for _, images, numbers in batches:
                scores.append(measure(images, numbers))
                advance(len(images))
            return torch.cat(scores)[None]
        with growing_csv(Path(output), COLUMNS) as write:
            validation = _validation_scores(checkpoint, packages, measure)
            table = []
            for names, images, numbers in batches:
                columns = [measure(images, numbers)]
                columns += [codec_bits_per_dim(flow.dequantizer.reduce(images), codec) for codec in CODEC_OPTIONS]
                if validation is not None:
                    columns.append(torch.searchsorted(validation, columns[0]) / len(validation))
                table.append(torch.stack(columns))
                write(
                    [name, *(f"{number:.6f}" for number in row)]
                    for name, row in zip(names, table[-1].T.tolist(), strict=True)
                )
                advance(len(images))
            return torch.cat(table, dim=1)


def _validation_scores(checkpoint: Path, packages: Sequence[str], measure: Measure) -> Tensor | None:
    """Bits/dim of the run's validation images, from the lowest to the highest; ``None`` where they are not at hand."""
    try:
        data = data_of_run(checkpoint, packages)
        data.setup("validate")
    except InputError as error:
        console.warn(f"no ranks among the run's validation images: {error}")
        return None
    indices = spread(len(data.val), MAX_RANKED)
    parts = torch.tensor(indices).split(data.eval_batch_size)
    scores = [measure(data.val.gather(part.tolist()), part) for part in parts]
    return torch.cat(scores).sort().values


def _show(
    cfg: DictConfig, what: str, checkpoint: Path, scores: Sequence[Score], output: str | None, record: Path | None
) -> None:
    draws = "" if cfg.num_samples == 1 else f", {cfg.num_samples} noise draws per image"
    precision = "" if cfg.precision == "exact" else f", precision {cfg.precision}"
    names = [f"bits/dim, {cfg.weights} weights{draws}{precision}", "PNG bits/dim", "lossless WebP bits/dim"]
    console.show_table(what, zip(names, scores, strict=False))
    left = [("checkpoint", checkpoint), ("scores", output), ("record", record)]
    console.show_paths((name, Path(path)) for name, path in left if path is not None)


def _record(cfg: DictConfig, checkpoint: Path, data: ImageDataModule, score: Score) -> Path | None:
    """Leave an exact score in the run's folder, with all that says what it may be compared with, for ``report.py``."""
    run_dir = run_folder_of(checkpoint)
    if run_dir is None or cfg.data is not None or (cfg.split, cfg.precision) != ("test", "exact"):
        return None
    path = run_dir / EVALUATIONS / f"{checkpoint.stem}-{cfg.weights}-K{cfg.num_samples}-seed{cfg.seed}.json"
    record = {
        "checkpoint": str(checkpoint),
        "data": data.set_name,
        "selection_note": data.selection_note,
        "split": "test",
        "num_images": score.num_images,
        "num_groups": score.num_groups,
        "weights": cfg.weights,
        "num_noise_samples": cfg.num_samples,
        "seed": cfg.seed,
        "bits_per_dim": score.mean,
        "standard_error": score.standard_error,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=2).encode())
    return path
