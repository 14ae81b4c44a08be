"""Tar archives from outside: looked through before anything is taken out of them.

Nothing is ever extracted by a name that the archive chose: members are read by their place in the file, or copied to
file names that this project chose. All the same an archive that holds a name leading elsewhere, a link or a device is
refused whole, since no release of any data set has one: the file has been tampered with.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.errors import InputError
from flows.files import atomic_write

MAX_MEMBERS = 3_000_000
"""More files than this no data set has."""

READ_AT_ONCE = 1 << 20

BLOCK = 512
"""Tar files consist of blocks of so many bytes."""

EMPTY_BLOCK = bytes(BLOCK)


def members(archive: Path, max_bytes: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The regular files of a ``.tar`` or ``.tar.gz``, in their order, each with the open archive to read it from.

    Memory does not grow with the number of members.

    Args:
        archive: the file.
        max_bytes: what all members may have together; stops archives that unpack to more than a disk holds.

    Raises:
        InputError: the file is missing, is no tar archive, is damaged or cut short, or contains an absolute name, a
            name with ``..``, a link, a device, too many members or too many bytes.
    """
    with _explained(archive):
        opened = tarfile.open(archive, "r:gz" if _is_gzip(archive) else "r:")  # noqa: SIM115 - closed by the next line
    with opened as tar:
        total = 0
        for number in range(MAX_MEMBERS + 1):
            with _explained(archive):
                member = tar.next()
            if member is None:
                _require_sound_end(archive, tar, max_bytes)
                return
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
            _require_harmless(archive, member)
            total += member.size
            if number == MAX_MEMBERS or total > max_bytes:
                raise InputError(
                    f"{archive} unpacks to more than {MAX_MEMBERS:,} files or {max_bytes / 2**30:,.1f} GiB, which this "
                    "data set never does: it is not what its name says; get it again from its source"
                )
            if member.isfile():
                yield member, tar


def extract(archive: Path, names: Collection[str], folder: Path, max_bytes: int) -> list[Path]:
    """Copy some files out of an archive into ``folder``, flat, under exactly these names.

    Args:
        archive: a ``.tar`` or ``.tar.gz``.
        names: the wanted files' last path components; each must occur once.
        folder: made if missing.
        max_bytes: see :func:`members`.

    Returns:
        The files in the order of ``names``.

    Raises:
        InputError: see :func:`members`; or a wanted file is missing or occurs twice.
        StorageError: the folder cannot be written to.
    """
    found: set[str] = set()
    for member, tar in members(archive, max_bytes):
        name = PurePosixPath(member.name).name
        if name not in names:
            continue
        if name in found:
            raise InputError(f"{archive} holds {name} twice: it is damaged or made up; get it again from its source")
        found.add(name)
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        with atomic_write(folder / name) as file:
            while block := _read(archive, content):
                file.write(block)
        if (folder / name).stat().st_size != member.size:
            raise InputError(f"{archive} is cut short inside {member.name}: get it again from its source")
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{archive} lacks {', '.join(missing)}: it is not the release that was expected")
    return [folder / name for name in names]


def index_pictures(archive: Path, suffix: str, max_bytes: int) -> tuple[NDArray, NDArray, NDArray]:
    """Where the pictures of an uncompressed tar lie, sorted by name: names (bytes), offsets, sizes, ``(N,)`` each.

    Hidden files are passed over. Raises ``InputError`` as :func:`members` does, and for a compressed archive, which
    cannot be read at any place.
    """
    if archive.is_file() and _is_gzip(archive):
        raise InputError(f"{archive} is compressed: unpack it once (gunzip) and give the .tar")
    names, offsets, sizes = [], [], []
    places = _plain_places(archive, max_bytes)
    if places is None:  # with headers of a newer kind: the slow way
        places = [(member.name.encode(), member.offset_data, member.size) for member, _ in members(archive, max_bytes)]
    for path, offset, size in places:
        name = path.rpartition(b"/")[2]
        if name.endswith(suffix.encode()) and not name.startswith(b"."):
            names.append(name)
            offsets.append(offset)
            sizes.append(size)
    if offsets and max(start + size for start, size in zip(offsets, sizes, strict=True)) > archive.stat().st_size:
        raise InputError(f"{archive} is cut short: get it again from its source")
    sorted_names = np.array(names, dtype=bytes)
    order = np.argsort(sorted_names, kind="stable")
    return sorted_names[order], np.array(offsets, np.int64)[order], np.array(sizes, np.int64)[order]


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal checksum of a file, ``md5`` or ``sha256``.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _plain_places(archive: Path, max_bytes: int) -> list[tuple[bytes, int, int]] | None:
    """Name, offset and size of every file of an uncompressed tar with headers of the oldest kind only, else ``None``.

    Ten times as fast as ``tarfile``, which matters for a million members; anything but plain files and folders with
    harmless names (links, long names, sparse files, damage) is left to :func:`members` to read or to refuse.
    """
    places: list[tuple[bytes, int, int]] = []
    with _explained(archive), open(archive, "rb") as file:
        length, place, total = archive.stat().st_size, 0, 0
        while len(header := file.read(BLOCK)) == BLOCK:
            if header == EMPTY_BLOCK:
                return places
            name, kind, prefix = header[:100].rstrip(b"\0"), header[156:157], header[345:500].rstrip(b"\0")
            octal, checksum = header[124:135], header[148:156].rstrip(b" \0")
            is_plain = kind in b"0\x005" and octal.isdigit() and checksum.strip().isdigit() and b"\0" not in name
            if not is_plain or sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum, 8):
                return None
            if prefix or name.startswith(b"/") or b".." in name or b"\\" in name or name[1:2] == b":":
                return None
            size, place = int(octal, 8), place + BLOCK
            total += size
            if total > max_bytes or len(places) >= MAX_MEMBERS or place + size > length:
                return None
            if kind != b"5" and not name.endswith(b"/"):
                places.append((name, place, size))
            place += -(-size // BLOCK) * BLOCK
            file.seek(place)
    return None


def _require_harmless(archive: Path, member: tarfile.TarInfo) -> None:
    name = member.name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or name[1:2] == ":" or ".." in path.parts or "\0" in name:
        raise InputError(f"{archive} holds a file named {_shown(name)}, which leads out of any folder: do not trust it")
    if not (member.isfile() or member.isdir()):
        raise InputError(f"{archive} holds {_shown(name)}, which is a link or a device and no file: do not trust it")
    if member.sparse is not None:
        raise InputError(f"{archive} holds {_shown(name)}, which is a sparse file: it is not what its name says")


def _require_sound_end(archive: Path, tar: tarfile.TarFile, max_bytes: int) -> None:
    """Read on to the end of the file, where gzip keeps its checksum."""
    assert tar.fileobj is not None
    for _ in range(max_bytes // READ_AT_ONCE + 1):
        if not _read(archive, tar.fileobj):
            return
    raise InputError(f"{archive} has no end: it is not what its name says; get it again from its source")


def _shown(name: str) -> str:
    """A name from outside, short and without control characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _is_gzip(path: Path) -> bool:
    with _explained(path), open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read(archive: Path, content: Any) -> bytes:
    with _explained(archive):
        return content.read(READ_AT_ONCE)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn everything that reading a damaged archive raises into one line."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        what = "an HTML page, not an archive" if _is_html(archive) else f"damaged or no tar archive ({error})"
        raise InputError(f"{archive} is {what}: get it again from its source") from error
    except OSError as error:
        raise InputError(f"cannot read {archive}: {error.strerror or error}") from error


def _is_html(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(512).lstrip().lower()
    except OSError:
        return False
    return start.startswith((b"<!doctype html", b"<html"))
