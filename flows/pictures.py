"""Images in and out: grids as PNG, folders of pictures as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flows.errors import InputError, NonFiniteError
from flows.files import atomic_write
from flows.model import Flow, Latents

SUFFIXES = (".png", ".jpg", ".jpeg")


def decode_or_white(flow: Flow, latents: Latents) -> tuple[Tensor, int]:
    """The images of some latents, white where decoding overflows, and how many these are.

    For pictures of what a flow has learned so far; whoever wants samples wants the error (:meth:`flows.Flow.decode`).
    """
    try:
        return flow.decode(latents), 0
    except NonFiniteError:
        if len(latents[0]) == 1:
            return torch.full((1, *flow.image_shape), 255, dtype=torch.uint8, device=flow.device), 1
    halves = [[level[part] for level in latents] for part in (slice(None, None, 2), slice(1, None, 2))]
    images = torch.empty(len(latents[0]), *flow.image_shape, dtype=torch.uint8, device=flow.device)
    images[::2], in_even = decode_or_white(flow, halves[0])
    images[1::2], in_odd = decode_or_white(flow, halves[1])
    return images, in_even + in_odd


def grid(images: Tensor, num_columns: int, gap: int = 2) -> Tensor:
    """Lay out uint8 images ``(N, C, H, W)`` row by row on white, ``gap`` pixels apart: ``(C, H', W')``."""
    num_rows = -(-len(images) // num_columns)
    missing = num_rows * num_columns - len(images)
    blank = images.new_full((missing, *images.shape[1:]), 255)
    padded = torch.nn.functional.pad(torch.cat([images.cpu(), blank.cpu()]), [0, gap, 0, gap], value=255)
    sheet = rearrange(padded, "(rows columns) c h w -> c (rows h) (columns w)", columns=num_columns)
    return torch.nn.functional.pad(sheet, [gap, 0, gap, 0], value=255)


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
