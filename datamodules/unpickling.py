"""Reads the pickles of CIFAR10's Python release without letting them do anything.

A pickle is a program. This interpreter of it knows no function but the four that a numpy array of bytes needs, and
these are stand-ins written here: nothing of numpy runs on what the file says until it has been checked.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from flows.errors import InputError

MAX_BYTES = 1 << 28
"""Of a pickle; CIFAR10's have 31 MB."""


def load_plain(path: Path) -> Any:
    """Unpickle a file that may hold uint8 arrays, byte strings, texts, numbers, lists, tuples and dicts only.

    Texts of Python 2 come as ``bytes``.

    Raises:
        InputError: the file is missing, damaged, too large, or wants to build or call anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES:,} bytes: it is not a batch of CIFAR10")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _finished(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load())
    except _RefusedError as error:
        raise InputError(f"{path} wants to {error}, which data never need: do not trust this file") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is damaged or no pickle ({type(error).__name__}): get it again") from error


class _RefusedError(Exception):
    """The pickle asked for something that is not plain data."""


class _Array:
    """A numpy array being unpickled: made empty first, filled by its state."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, content = state
        if not (version == 1 and isinstance(dtype, _Dtype) and isinstance(content, bytes)):
            raise _RefusedError("fill an array with objects")
        if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
            raise ValueError("an array's shape is no list of sizes")
        flat = np.frombuffer(content, dtype=np.uint8)  # reshape compares the sizes
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


class _Dtype:
    """The type ``uint8``; whatever state it is given says nothing more about it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _dtype(name: Any, *arguments: Any) -> _Dtype:
    if name not in ("u1", "|u1", b"u1", b"|u1"):
        raise _RefusedError(f"make an array of {name!r}")
    return _Dtype()


def _encode(text: Any, encoding: Any = None) -> bytes:
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("encode something that is no text")
    return text.encode("latin1")


class _Callable:
    """Wraps one of the functions above, so that the pickle can call it and change nothing about it."""

    __slots__ = ("_function",)

    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError("change a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Callable(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Callable(_reconstruct),
    ("numpy", "dtype"): _Callable(_dtype),
    ("numpy", "ndarray"): "ndarray",  # only ever handed to _reconstruct, which does not look at it
    ("_codecs", "encode"): _Callable(_encode),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _RefusedError(f"use {module}.{name}"[:120])
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("load something from elsewhere")


def _finished(value: Any, depth: int = 0) -> Any:
    """The value with its arrays in place of the stand-ins, one level of list, tuple and dict after the other."""
    if depth > 3:
        raise ValueError("nested more deeply than any batch")
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {_finished(key, depth + 1): _finished(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finished(item, depth + 1) for item in value]
    if isinstance(value, (bytes, str, int, float, bool, type(None))):
        return value
    raise _RefusedError(f"build a {type(value).__name__}")
