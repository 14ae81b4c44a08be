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

EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I")


def read_file(path: Path | str) -> bytes:
    """The bytes of a picture's file. Raises ``InputError`` if it cannot be read or is absurdly large."""
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise InputError(f"{path} has more than {MAX_FILE_BYTES / 2**20:.0f} MiB: remove it")
            return file.readall()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decode_exact(content: bytes, where: str, size: int) -> tuple[NDArray[np.uint8], Counter[str]]:
    """A PNG of exactly ``size`` x ``size`` pixels as uint8 ``(size, size, 3)``, and what had to be converted.

    Raises:
        InputError: another format or size, a wrong checksum, or anything that cannot be decoded; with ``where``.
    """
    with _explained(where), Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        if picture.size != (size, size):
            found = " x ".join(map(str, picture.size))
            raise InputError(f"{where} has {found} pixels instead of {size} x {size}: it belongs to another data set")
        _require_png_checksums(content)
        colour, counts = _to_colour(picture, where)
        return np.asarray(colour), counts


def decode(content: bytes, where: str) -> tuple[Image.Image, Counter[str]]:
    """A PNG, JPEG or WebP of any mode and size as a Pillow image in mode RGB, and a count of what was done to it.

    ``greyscale``, ``palette``, ``cmyk`` and ``16-bit`` pictures become 8-bit colour; ``alpha`` is laid over white;
    those that a camera marked as ``turned`` are turned upright; of an ``animated`` one the first frame is taken.

    Raises:
        InputError: anything else, or more than 64 megapixels; with ``where``.
    """
    with _explained(where), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{where} claims {width:,} x {height:,} pixels, more than {MAX_PIXELS / 2**20:.0f} Mi: "
                "remove it, or scale it down"
            )
        if picture.format == "PNG":
            _require_png_checksums(content)
        counts: Counter[str] = Counter()
        if getattr(picture, "n_frames", 1) > 1:
            counts["animated"] += 1
        orientation = picture.getexif().get(ORIENTATION, 1)
        colour, conversions = _to_colour(picture, where)
        if orientation in range(2, 9):
            counts["turned"] += 1
            colour.getexif()[ORIENTATION] = orientation
            colour = ImageOps.exif_transpose(colour)
        return colour, counts + conversions


def fit(picture: Image.Image, size: int) -> tuple[NDArray[np.uint8], Counter[str]]:
    """The central square of a picture, scaled to ``size`` pixels (bicubic, with antialiasing): ``(3, size, size)``.

    Counts ``cropped`` and ``enlarged`` pictures.
    """
    width, height = picture.size
    counts = Counter(cropped=int(width != height), enlarged=int(min(width, height) < size))
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1), +counts


def _to_colour(picture: Image.Image, where: str) -> tuple[Image.Image, Counter[str]]:
    mode, counts = picture.mode, Counter[str]()
    if mode in SIXTEEN_BIT_MODES:
        values = np.asarray(picture).astype(np.int64)
        grey = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
        return grey.convert("RGB"), Counter({"16-bit": 1, "greyscale": 1})
    if mode == "CMYK":
        return picture.convert("RGB"), Counter(cmyk=1)
    if mode not in EIGHT_BIT_MODES:
        raise InputError(f"{where} has the mode {mode}, which is not converted: save it as 8-bit RGB")
    if mode in ("1", "L", "LA"):
        counts["greyscale"] += 1
    if mode in ("P", "PA"):
        counts["palette"] += 1
    if mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        counts["alpha"] += 1
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB"), counts


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
