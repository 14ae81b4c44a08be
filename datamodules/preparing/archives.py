"""Tar archives from outside: nothing that leads out of a folder is unpacked, and links are not followed."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from flows.errors import InputError, first_line


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a whole ``.tar`` or ``.tar.gz`` that a checksum has identified: what it unpacks to has no limit.

    Raises:
        InputError: the archive is damaged, or holds a device or anything that leads out of the folder.
        OSError: the folder cannot be written to.
    """
    with _opened(archive, "r:*") as tar:
        tar.extractall(folder, filter="data")


def index_pictures(archive: Path, suffix: str) -> tuple[NDArray, NDArray, NDArray]:
    """Where the pictures of an uncompressed tar lie, sorted by name: names (bytes), offsets, sizes, ``(N,)`` each.

    Hidden files are left out.

    Raises:
        InputError: the archive is damaged, cut short, or compressed, so that it cannot be read at any place.
    """
    names, offsets, sizes = [], [], []
    with _opened(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header: a gigabyte for a million
            name = PurePosixPath(member.name).name
            if member.isfile() and name.endswith(suffix) and not name.startswith("."):
                names.append(name.encode())
                offsets.append(member.offset_data)
                sizes.append(member.size)
    if offsets and offsets[-1] + sizes[-1] > archive.stat().st_size:
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


@contextmanager
def _opened(archive: Path, mode: str) -> Iterator[tarfile.TarFile]:
    """The open archive; everything that reading a damaged one raises becomes one line."""
    try:
        file = open(archive, "rb")  # noqa: SIM115 - closed by the next line
    except OSError as error:
        raise InputError(f"cannot read {archive}: {error.strerror or error}") from error
    try:
        with file, tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError, OverflowError) as error:
        wanted = "an uncompressed tar archive" if mode == "r:" else "a tar archive"
        reason = first_line(error)
        raise InputError(f"{archive} is damaged or not {wanted} ({reason}): get it again from its source") from error
