"""What the project takes from inside Hydra and OmegaConf, a function for each seam.

They are pinned below 1.4 and 2.4.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Hydra's own reading of a command line: ``overrides``, and its flags by name."""
    return get_args_parser().parse_args(argv)


def quoted(path: Path) -> str:
    """A path as a value of Hydra's command line."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration; interpolations are not followed."""
    for key in map(str, config):
        path = f"{prefix}.{key}" if prefix else key
        yield path
        if not OmegaConf.is_missing(config, key):
            child = config._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                yield from dotted_keys(child, path)
            elif isinstance(child, Mapping):
                yield from (f"{path}.{name}" for name in child)
