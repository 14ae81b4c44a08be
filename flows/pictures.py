"""Images as pictures: grids, labels, PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flows.files import atomic_write

TEXT_HEIGHT = 16
"""Of the labels in a picture, in pixels."""

ENLARGED_HEIGHT = 64
"""Up to which images are enlarged where no scale is given, in pixels."""


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


def sheet(
    images: Tensor,
    num_columns: int,
    finite: Tensor | None = None,
    *,
    title: str = "",
    rows: Sequence[str] = (),
    scale: int = 0,
) -> Tensor:
    """A :func:`grid` of images enlarged without smoothing, below its title and beside the labels of its rows.

    Args:
        images: uint8 ``(N, C, H, W)``, the cells.
        num_columns: cells in a row.
        finite: which images there are, ``(N,)``; the other cells are hatched.
        title: above.
        rows: labels on the left, from the top.
        scale: factor of enlargement, an integer; 0 enlarges small images up to 64 pixels.
    """
    scale = scale or max(1, ENLARGED_HEIGHT // images.shape[2])
    cells = grid(images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), num_columns, finite)
    font = ImageFont.load_default(size=TEXT_HEIGHT)
    title, *rows = (_drawable(text) for text in (title, *rows))
    left = max((math.ceil(font.getlength(row)) + TEXT_HEIGHT for row in rows), default=0)
    top = 2 * TEXT_HEIGHT if title else 0
    width = max(left + cells.shape[2], math.ceil(font.getlength(title)) + TEXT_HEIGHT)
    picture = Image.new("L" if len(cells) == 1 else "RGB", (width, top + cells.shape[1]), "white")
    picture.paste(Image.fromarray(to_array(cells)), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((TEXT_HEIGHT // 2, TEXT_HEIGHT), title, fill="black", font=font, anchor="lm")
    row_height = cells.shape[1] / -(-len(images) // num_columns)
    for number, row in enumerate(rows):
        middle = top + (number + 0.5) * row_height
        draw.text((TEXT_HEIGHT // 2, middle), row, fill="black", font=font, anchor="lm")
    return torch.from_numpy(np.array(picture)).view(picture.height, width, -1).permute(2, 0, 1)


def _drawable(text: str) -> str:
    """One line of what Pillow's own font has letters for: file names are any text."""
    return " ".join(text.encode("latin-1", "replace").decode("latin-1").split())


def side_by_side(sheets: Sequence[Tensor], gap: int = 12) -> Tensor:
    """Pictures ``(C, H, W)`` of one height, ``gap`` pixels apart."""
    return torch.cat([torch.nn.functional.pad(sheet, [0, gap, 0, 0], value=255) for sheet in sheets], 2)[..., :-gap]


def save_png(image: Tensor, path: Path) -> None:
    """Write one uint8 image ``(1 or 3, H, W)``, whole or not at all."""
    with atomic_write(path) as file:
        Image.fromarray(to_array(image)).save(file, format="png")


def to_array(image: Tensor) -> np.ndarray:
    """A uint8 image as Pillow and the loggers want it: ``(C, H, W) -> (H, W, 3)`` or, with one channel, ``(H, W)``."""
    return image.cpu().permute(1, 2, 0).squeeze(-1).numpy()
