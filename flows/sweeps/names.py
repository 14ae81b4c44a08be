"""What a job's folder is called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

MAX_LENGTH = 100
"""Length of a name's readable part; file systems take 255 bytes."""

LOCATION_KEYS = ("run_dir", "resume")
"""Keys that say where a job is and how it starts, not what it is."""


def job_name(overrides: str) -> str:
    """The name of a job's folder: readable, and different for different overrides.

    Args:
        overrides: in one line, sorted, as in Hydra's ``override_dirname``.

    Returns:
        The overrides themselves if file systems and shells accept them; otherwise their readable part and a hash.
    """
    readable = re.sub(r"[^\w.,=+-]+", "_", overrides, flags=re.ASCII)
    if readable == overrides and len(readable) <= MAX_LENGTH:
        return readable or "defaults"
    digest = hashlib.blake2b(overrides.encode(), digest_size=4).hexdigest()
    return f"{readable[:MAX_LENGTH]}-{digest}"


def keys_in_common(overrides: Sequence[str], given: Sequence[str]) -> list[str]:
    """The keys of a job's overrides that all jobs of its sweep share, according to the command line ``given``.

    Names and tables leave them out, unless there are no others. If a key is given more than once, the last counts.
    """
    parser = OverridesParser.create()
    last = {line.key_or_group: line for line in parser.parse_overrides(list(given))}
    fixed = {key for key, line in last.items() if not line.is_sweep_override()}
    keys = [
        line.key_or_group for line in parser.parse_overrides(list(overrides)) if line.key_or_group not in LOCATION_KEYS
    ]
    return sorted(fixed & set(keys)) if set(keys) - fixed else []


def without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides of all other keys."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [line for line, override in zip(overrides, parsed, strict=True) if override.key_or_group not in keys]
