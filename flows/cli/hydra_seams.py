"""What we use of Hydra though it is private there: Hydra is pinned below 1.4."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser


def read_command_line(argv: Sequence[str]) -> Namespace:
    """Hydra's flags as attributes, and the words that are none of them as ``overrides``."""
    return get_args_parser().parse_args(argv)
