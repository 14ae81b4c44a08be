"""The failures that the project tells apart from bugs.

Entry points print these as one line on stderr and exit with a non-zero code; anything else is a bug and keeps its
traceback.
"""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong and what to do."""


class NonFiniteError(FloatingPointError):
    """A number that must be finite is NaN or infinite. The message says where it was first seen."""


class StorageError(OSError):
    """A file could not be written. What stood in its place before is untouched; nothing half-written is left."""


class SweepError(RuntimeError):
    """Some jobs of a sweep failed. The others are done; the message says how many and how to go on."""


class ProcessError(RuntimeError):
    """One of several processes that train together ended, and with it the training. The message names it."""


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
