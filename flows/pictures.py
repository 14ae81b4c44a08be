"""Images in and out: grids as PNG, folders of pictures as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from flows.errors import InputError
from flows.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg")

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


def find_pictures(folder: Path) -> list[Path]:
    """The PNG and JPEG files in ``folder`` and below, sorted by path.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"images={folder} is not a folder: give one that holds PNG or JPEG files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"no PNG or JPEG file in {folder}")
    return paths


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A PNG or JPEG file as a uint8 tensor of exactly this shape; nothing is converted on the way.

    Raises:
        InputError: the file is no picture, is broken, or has another mode, depth or size; names the remedy.
    """
    channels, height, width = shape
    if channels not in _MODES:
        raise InputError(f"the model has images of {channels} channels, which no PNG or JPEG file holds")
    wanted, described = _MODES[channels]
    try:
        if _png_bit_depth(path) == 16:
            raise InputError(f"{path} has 16 bits a channel, but the model wants {described}: convert it")
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            if picture.mode != wanted:
                raise InputError(
                    f"{path} has the mode {picture.mode}, but the model wants {described}: convert it, "
                    f"for instance with Pillow's Image.convert({wanted!r})"
                )
            if "transparency" in picture.info:
                raise InputError(f"{path} has a transparent colour, but the model wants {described}: convert it")
            if picture.size != (width, height):
                found = " x ".join(map(str, picture.size))
                raise InputError(
                    f"{path} has {found} pixels, but the model wants {width} x {height}: resize or crop it"
                )
            return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1).contiguous()
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a PNG or JPEG image, whatever its name says: remove it") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read ({error}): replace or remove it") from error


_MODES = {1: ("L", "8-bit greyscale (L)"), 3: ("RGB", "8-bit colour without alpha (RGB)")}
"""Pillow's mode for each number of channels, and in words."""


def _png_bit_depth(path: Path) -> int | None:
    """Bits per channel that a PNG file declares, which Pillow would reduce to 8 without a word; ``None`` if it is none.

    They are the 25th byte: behind the signature (8), the first chunk's length and name (8), width and height (8).
    """
    with open(path, "rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 25 else None
