"""Download or convert a data set once, check it, look at it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules import ImageDataModule, PreparedDataModule
from datamodules.loading.augmentation import draw_bits
from datamodules.preparing.storage import verify
from flows import console
from flows.config.building import build
from flows.pictures import grid, save_png
from flows.randomness import Stream

PREVIEW_ROWS, PREVIEW_COLUMNS = 6, 12


def prepare(cfg: DictConfig) -> None:
    """Prepare one data set and say what it is."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    data: ImageDataModule = build(config["data"])
    started = time.perf_counter()
    data.prepare_data()
    data.setup()
    console.say(f"{data.description} ({console.duration(time.perf_counter() - started)})")
    if isinstance(data, PreparedDataModule):
        _describe(data)
        if cfg.verify:
            started = time.perf_counter()
            count = sum(verify(data.folder).values())
            took = console.duration(time.perf_counter() - started)
            console.say(f"verified: all {count:,} images are as they were prepared ({took})")
    else:
        console.say("nothing to prepare: this data set comes with what is installed")
    if cfg.preview is not None:
        path = Path(cfg.preview)
        save_png(grid(preview(data, cfg.seed), PREVIEW_COLUMNS), path)
        console.show_paths([("preview (each row, then the same images augmented)", path)])


def preview(data: ImageDataModule, seed: int) -> Tensor:
    """Training images row by row, each row followed by the same images augmented: uint8 ``(N, C, H, W)``."""
    number = min(PREVIEW_ROWS * PREVIEW_COLUMNS, len(data.train))
    number -= number % PREVIEW_COLUMNS if number > PREVIEW_COLUMNS else 0  # full rows, or one
    spread = [index * len(data.train) // number for index in range(number)]
    images = data.train.gather(spread)
    augmented = data.augmentation(images, draw_bits(number, Stream.PREVIEW, seed))
    rows = zip(images.split(PREVIEW_COLUMNS), augmented.split(PREVIEW_COLUMNS), strict=True)
    return torch.cat([image for pair in rows for image in pair])


def _describe(data: PreparedDataModule) -> None:
    manifest = data.manifest
    source = {
        key: value for key, value in manifest["source"].items() if key not in ("name", "listing", "classes", "left_out")
    }
    rows = [(key.replace("_", " "), value) for key, value in source.items()]
    rows += [(split, " x ".join(map(str, shape))) for split, shape in manifest["splits"].items()]
    console.show_table(f"{data.folder}", rows)
