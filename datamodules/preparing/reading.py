"""Reading what comes from outside: whatever a damaged file raises becomes one line with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import InputError, first_line


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Around code that reads ``source`` and nothing else.

    Raises:
        InputError: instead of any exception, since damaged archives, pictures and arrays raise nearly all of them.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {source} ({first_line(error)}): get it again, or remove it") from error
