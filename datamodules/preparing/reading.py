"""Reading what comes from outside: whatever a damaged file raises becomes one line with its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from flows.errors import InputError, first_line

NAMED = 5
"""Files and reasons that a message names; the others are counted."""


def in_groups(reasons: Mapping[str, str]) -> list[str]:
    """Files with a reason each, as a text for each reason: ``a.png, b.png and 7 more (hidden)``."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"{_some(alike, ', ')} ({reason})" for reason, alike in names.items()]


def _some(texts: Sequence[str], separator: str) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return separator.join(texts[:NAMED]) + more


class UnreadableError(InputError):
    """Some files cannot be read: ``reasons`` by their names."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        it = "it" if len(self.reasons) == 1 else "them"
        return f"cannot read {_some(in_groups(self.reasons), '; ')}: get {it} again, or remove {it}"


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
        raise UnreadableError({str(source): first_line(error)}) from error
