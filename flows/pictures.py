"""Images as pictures: grids, labels, PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flows.files import atomic_write

TEXT_HEIGHT = 16
"""Of the labels in a picture, in pixels."""


def hatched(shape: tuple[int, ...]) -> Tensor:
    """A uint8 image ``(C, H, W)`` of grey diagonals on white: there is no picture here."""
    _, height, width = shape
    diagonals = (torch.arange(height)[:, None] + torch.arange(width)) % 8 < 2
    return torch.where(diagonals, 150, 255).to(torch.uint8).expand(shape)


def grid(images: Tensor, num_columns: int, finite: Tensor | None = None, gap: int = 2) -> Tensor:
    """Lay out uint8 images ``(N, C, H, W)`` row by row on white, ``gap`` pixels apart: ``(C, H', W')``.

    Args:
        images: the cells.
        num_columns: cells in a row.
        finite: which images there are, ``(N,)``; the other cells are hatched.
        gap: between cells and around them, in pixels.
    """
    num_rows = -(-len(images) // num_columns)
    missing = num_rows * num_columns - len(images)
    images = images.cpu()
    if finite is not None:
        images = torch.where(finite.cpu()[:, None, None, None], images, hatched(images.shape[1:]))
    blank = images.new_full((missing, *images.shape[1:]), 255)
    padded = torch.nn.functional.pad(torch.cat([images, blank]), [0, gap, 0, gap], value=255)
    sheet = rearrange(padded, "(rows columns) c h w -> c (rows h) (columns w)", columns=num_columns)
    return torch.nn.functional.pad(sheet, [gap, 0, gap, 0], value=255)


def side_by_side(sheets: dict[str, Tensor], scale: int = 2, gap: int = 12) -> Tensor:
    """Sheets ``(C, H, W)`` of one height beside each other, enlarged without smoothing, each below its label.

    Args:
        sheets: by label.
        scale: factor of enlargement.
        gap: between sheets, in pixels of the result.
    """
    font = ImageFont.load_default(size=TEXT_HEIGHT)
    columns = []
    for label, sheet in sheets.items():
        large = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        head = Image.new("L", (large.shape[2], 2 * TEXT_HEIGHT), 255)
        ImageDraw.Draw(head).text((2 * scale, TEXT_HEIGHT // 2), label, fill=0, font=font)
        text = torch.from_numpy(np.array(head)).expand(len(large), -1, -1)
        columns.append(torch.nn.functional.pad(torch.cat([text, large], dim=1), [0, gap, 0, 0], value=255))
    return torch.cat(columns, dim=2)[..., :-gap]


def save_png(image: Tensor, path: Path) -> None:
    """Write one uint8 image ``(1 or 3, H, W)``, whole or not at all."""
    with atomic_write(path) as file:
        Image.fromarray(to_array(image)).save(file, format="png")


def to_array(image: Tensor) -> np.ndarray:
    """A uint8 image as Pillow and the loggers want it: ``(C, H, W) -> (H, W, 3)`` or, with one channel, ``(H, W)``."""
    return image.cpu().permute(1, 2, 0).squeeze(-1).numpy()
