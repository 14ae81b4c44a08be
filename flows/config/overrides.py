"""Hydra's command line, as text: the arguments of another process, and values in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from flows.errors import InputError

SINGLE = "hydra.mode=RUN"
"""The override that distinguishes one trial of a search from the search."""

QUOTES, SPECIAL_TO_SHELLS = "\"'", set('"$`\\!')

OF_THE_SWEEP = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep")
"""Settings that belong to the sweep and not to its jobs."""


def parse(lines: Sequence[str]) -> list[Override]:
    """Overrides as Hydra understands them.

    Raises:
        InputError: one cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(list(lines))
    except OverrideParseException as error:
        key, is_setting, value = str(error.override).partition("=")
        form = f"write {as_text(key, value)}" if is_setting else "it should be key=value"
        raise InputError(f"cannot read the override {error.override!r}: {form}") from error


def with_whole_values(argv: Sequence[str]) -> list[str]:
    """A command line as it was meant, with ``~`` as the home folder: a shell leaves it alone behind ``key=``.

    Raises:
        InputError: a value is empty, as in ``data.root=$UNSET``; as a path it would be the working directory.
    """
    home = str(Path.home())
    words = []
    for word in argv:
        key, sign, value = word.partition("=")
        if sign and value in ("", "''", '""'):
            raise InputError(f"{word} gives no value (is a variable of the shell empty?): give one, or leave {key} out")
        words.append(key + re.sub(r"(?<=[=,\['\"])~(?=[/,\]'\"]|$)", lambda _: home, sign + value))
    return words


def as_text(key: str, value: str) -> str:
    """What to type into a shell, so that the value is a text as it stands, whatever its characters."""
    word = f"{key}={quoted(value.strip(QUOTES))}"
    return shlex.quote(word) if set(word) & SPECIAL_TO_SHELLS else f'"{word}"'


def quoted(text: Path | str) -> str:
    """A path, or any other text, as a value of Hydra's command line."""
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def as_single_run(overrides: Sequence[str], hydra_overrides: Sequence[str]) -> list[str]:
    """The arguments that make this program do one run in another process: a job of its sweep, or its own run.

    Args:
        overrides: those of the run.
        hydra_overrides: those of Hydra's own settings that this program was given; what concerns the run is kept.
    """
    kept = [line for line in hydra_overrides if not line.lstrip("+~").startswith(OF_THE_SWEEP)]
    return [*kept, SINGLE, *overrides]
