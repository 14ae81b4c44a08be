"""Tar archives from outside. Nothing is unpacked under a name that the archive chose, and links are not followed."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from flows.errors import InputError, first_line


def extract(archive: Path, names: Collection[str], folder: Path) -> list[Path]:
    """Copy some files out of an archive into ``folder``, flat, under exactly these names.

    Args:
        archive: a ``.tar`` or ``.tar.gz`` that a checksum has identified: what it unpacks to has no limit.
        names: the wanted files' last path components; each must occur once.
        folder: made if missing.

    Returns:
        The files in the order of ``names``.

    Raises:
        InputError: the archive is damaged; a wanted file is missing or occurs twice.
        OSError: the folder cannot be written to.
    """
    contents: dict[str, bytes] = {}
    with _opened(archive, "r:*") as tar:
        for member in _files(tar):
            name = PurePosixPath(member.name).name
            if name in contents:
                raise InputError(f"{archive} holds {name} twice: it is damaged or made up; get it from its source")
            if name in names:
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                contents[name] = content.read()
                if len(contents[name]) != member.size:
                    raise EOFError(f"cut short inside {name}")
    missing = [name for name in names if name not in contents]
    if missing:
        raise InputError(f"{archive} lacks {', '.join(missing)}: it is not the release that was expected")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(contents[name])
    return [folder / name for name in names]


def index_pictures(archive: Path, suffix: str) -> tuple[NDArray, NDArray, NDArray]:
    """Where the pictures of an uncompressed tar lie, sorted by name: names (bytes), offsets, sizes, ``(N,)`` each.

    Hidden files are left out.

    Raises:
        InputError: the archive is damaged, cut short, or compressed, so that it cannot be read at any place.
    """
    names, offsets, sizes = [], [], []
    with _opened(archive, "r:") as tar:
        for member in _files(tar):
            name = PurePosixPath(member.name).name
            if name.endswith(suffix) and not name.startswith("."):
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


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive, in their order; memory does not grow with their number."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
        if member.isfile():
            yield member


@contextmanager
def _opened(archive: Path, mode: str) -> Iterator[tarfile.TarFile]:
    """The open archive; everything that reading a damaged one raises becomes one line."""
    try:
        with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        wanted = "an uncompressed tar archive" if mode == "r:" else "a tar archive"
        raise InputError(
            f"{archive} is damaged or not {wanted} ({first_line(error)}): get it again from its source"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {archive}: {error.strerror or error}") from error
