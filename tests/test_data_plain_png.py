"""The quick way of reading plain PNG files gives what Pillow gives, or leaves the file to Pillow."""

import io
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from datamodules import plain_png
from datamodules.decoding import decode, decode_exact
from flows.errors import InputError

needs_extension = pytest.mark.skipif(plain_png.unfilter is None, reason="the extension was not built")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def random_rows(width, height, seed=0, kinds=range(5), step=3):
    """Any bytes are an image, as long as each row starts with the kind of its filter."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (height, 1 + step * width), dtype=np.uint8)
    rows[:, 0] = random.choice(list(kinds), height)
    return rows.tobytes()


END = chunk(b"IEND", b"")


def png(width, height, stream, header=(8, 2, 0, 0, 0), before=b"", pieces=1, end=END):
    cuts = [len(stream) * piece // pieces for piece in range(pieces + 1)]
    pixels = b"".join(chunk(b"IDAT", stream[start:stop]) for start, stop in pairwise(cuts))
    head = chunk(b"IHDR", struct.pack(">II5B", width, height, *header))
    return plain_png.SIGNATURE + head + before + pixels + end


def by_pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@needs_extension
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1), (2, 3), (32, 32), (33, 70)])
@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [4], range(5)])
def test_pixels_are_those_of_pillow_whatever_the_filters(width, height, kinds):
    for seed in range(5):
        content = png(width, height, zlib.compress(random_rows(width, height, seed, kinds)), pieces=1 + seed)
        found = plain_png.decode_plain(content)
        assert found is not None and found.dtype == np.uint8 and np.array_equal(found, by_pillow(content))


@needs_extension
def test_files_as_pillow_writes_them_are_plain():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for options in ({}, {"optimize": True}, {"compress_level": 0}):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png", **options)
        assert np.array_equal(plain_png.decode_plain(file.getvalue()), image)


ROWS = random_rows(8, 8)
STREAM = zlib.compress(ROWS)
SOUND = png(8, 8, STREAM)

LEFT_TO_PILLOW = {
    "gamma": png(8, 8, STREAM, before=chunk(b"gAMA", struct.pack(">I", 45455))),
    "colour profile": png(8, 8, STREAM, before=chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile"))),
    "sRGB": png(8, 8, STREAM, before=chunk(b"sRGB", b"\0")),
    "a transparent colour": png(8, 8, STREAM, before=chunk(b"tRNS", bytes(6))),
    "greyscale": png(8, 8, zlib.compress(random_rows(8, 8, step=1)), (8, 0, 0, 0, 0)),
    "palette": png(8, 8, zlib.compress(bytes(72)), (8, 3, 0, 0, 0), before=chunk(b"PLTE", bytes((1, 2, 3)))),
    "alpha": png(8, 8, zlib.compress(random_rows(8, 8, step=4)), (8, 6, 0, 0, 0)),
    "16 bits": png(8, 8, zlib.compress(random_rows(8, 8, step=6)), (16, 2, 0, 0, 0)),
    "interlaced": png(1, 1, zlib.compress(bytes(4)), (8, 2, 0, 0, 1)),
    "an unknown filter": png(8, 8, zlib.compress(b"\5" + ROWS[1:])),
    "too few rows": png(8, 8, zlib.compress(ROWS[:-25])),
    "a row too many": png(8, 8, zlib.compress(ROWS + ROWS[-25:])),
    "bytes after the stream": png(8, 8, STREAM + b"more"),
    "a stream cut short": png(8, 8, STREAM[:-9]),
    "a stream without its checksum": png(8, 8, STREAM[:-4]),
    "a stream with a wrong checksum": png(8, 8, STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "no stream": png(8, 8, b""),
    "no zlib": png(8, 8, b"no zlib at all"),
    "no end": png(8, 8, STREAM, end=b""),
    "cut short": SOUND[:-15],
    "a wrong checksum": SOUND[:50] + bytes([SOUND[50] ^ 1]) + SOUND[51:],
    "two headers": SOUND[:33] + SOUND[8:],
    "no header": SOUND[:8] + SOUND[33:],
    "a short header": SOUND[:8] + chunk(b"IHDR", bytes(3)) + SOUND[33:],
    "no pixels wide": png(0, 8, STREAM),
    "a bomb": png(8, 8, zlib.compress(bytes(20 << 20))),
    "huge": png(30_000, 30_000, STREAM),
    "large": png(2048, 1024, zlib.compress(bytes(1024 * (1 + 3 * 2048)))),
    "another signature": b"\x89PNG\n\r\n\n" + SOUND[8:],
    "empty": b"",
}


def outcome(content, read):
    try:
        found, counts = read(content)
        return np.asarray(found).tobytes(), dict(counts)
    except InputError as error:
        return str(error)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_anything_else_is_left_to_pillow(name, monkeypatch):
    content = LEFT_TO_PILLOW[name]
    assert plain_png.decode_plain(content) is None
    for read in (lambda content: decode(content, "here"), lambda content: decode_exact(content, "here", 8)):
        with monkeypatch.context() as patch:
            found = outcome(content, read)
            patch.setattr(plain_png, "unfilter", None)
            assert found == outcome(content, read)


def test_without_the_extension_pillow_reads_everything(monkeypatch):
    expected = by_pillow(SOUND)
    for _ in range(2):
        assert np.array_equal(decode_exact(SOUND, "here", 8)[0], expected)
        assert np.array_equal(np.asarray(decode(SOUND, "here")[0]), expected)
        monkeypatch.setattr(plain_png, "unfilter", None)


def test_damage_is_refused_or_read_as_pillow_reads_it(monkeypatch):
    """Streams with flipped bits, under chunk checksums that hold."""
    random = np.random.default_rng(1)
    for _ in range(300):
        stream = bytearray(STREAM)
        stream[random.integers(len(stream))] ^= 1 << random.integers(8)
        content = png(8, 8, bytes(stream))
        with monkeypatch.context() as patch:
            found = outcome(content, lambda content: decode_exact(content, "here", 8))
            patch.setattr(plain_png, "unfilter", None)
            assert found == outcome(content, lambda content: decode_exact(content, "here", 8))


@needs_extension
@pytest.mark.parametrize(
    ("rows", "pixels", "step"), [((3, 7), (3, 9), 3), ((3, 7), (4, 8), 3), ((3, 0), (4, 2), 3), ((3, 7), (4, 6), 0)]
)
def test_shapes_that_do_not_belong_together_are_refused(rows, pixels, step):
    with pytest.raises(ValueError, match="shapes"):
        plain_png.unfilter(np.zeros(rows, np.uint8), np.zeros(pixels, np.uint8), step)
