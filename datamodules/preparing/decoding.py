"""Pictures from outside as arrays: every mode converted on purpose and counted, every broken file named."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from flows.errors import InputError

MAX_PIXELS = 64 * 2**20
"""Of a picture; a larger one is refused before it is unpacked."""

MAX_FILE_BYTES = 256 * 2**20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

FORMATS = ("PNG", "JPEG", "WEBP")

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""


def read_file(path: Path | str) -> bytes:
    """The bytes of a picture's file. Raises ``InputError`` if it cannot be read or is absurdly large."""
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise InputError(f"{path} has more than {MAX_FILE_BYTES / 2**20:.0f} MiB: remove it")
            return file.readall()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decode(content: bytes, where: str, formats: tuple[str, ...] = FORMATS) -> tuple[Image.Image, Counter[str]]:
    """A picture of any mode and size as a Pillow image in mode RGB, and a count of what was done to it.

    Every ``mode`` becomes 8-bit colour; ``alpha`` is laid over white; pictures that a camera marked as ``turned`` are
    turned upright; of an ``animated`` one the first frame is taken.

    Raises:
        InputError: another format, a damaged file, or more than 64 megapixels; with ``where``.
    """
    with _explained(where), Image.open(io.BytesIO(content), formats=formats) as opened:
        picture: Image.Image = opened
        if picture.width * picture.height > MAX_PIXELS:
            raise InputError(
                f"{where} claims {picture.width:,} x {picture.height:,} pixels, more than {MAX_PIXELS / 2**20:.0f} Mi: "
                "remove it, or scale it down"
            )
        if picture.format == "PNG":
            _require_png_checksums(content)
        counts = Counter[str](animated=int(getattr(picture, "n_frames", 1) > 1))
        if picture.getexif().get(ORIENTATION, 1) in range(2, 9):
            counts["turned"] = 1
            picture = ImageOps.exif_transpose(picture)
        if picture.mode != "RGB":
            counts[f"mode {picture.mode}"] = 1
        if picture.mode.startswith("I"):  # 16 bits, of which the upper eight are kept
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
        if picture.has_transparency_data:
            counts["alpha"] = 1
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB"), +counts


def fit(picture: Image.Image, size: int) -> tuple[NDArray[np.uint8], Counter[str]]:
    """The central square of a picture, scaled to ``size`` pixels (bicubic, with antialiasing): ``(3, size, size)``.

    Counts ``cropped`` and ``enlarged`` pictures.
    """
    width, height = picture.size
    counts = Counter(cropped=int(width != height), enlarged=int(min(width, height) < size))
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1), +counts


def _require_png_checksums(content: bytes) -> None:
    """Compare every chunk with its CRC: Pillow ignores those of the pixels.

    Raises:
        ValueError: a chunk is cut short or differs from its checksum.
    """
    kind, place = b"", len(PNG_SIGNATURE)
    while kind != b"IEND":
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            raise ValueError("cut short")
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError("a checksum is wrong")
        kind, place = content[place + 4 : place + 8], end + 4


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{where} is not a picture, whatever its name says: replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{where} claims far too many pixels (a decompression bomb): remove it") from error
    except Exception as error:  # a damaged picture raises nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{where} is damaged ({reason}): replace or remove it") from error
