"""What the project takes from inside Hydra, which is pinned below 1.4."""

from __future__ import annotations

from argparse import ArgumentError, Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from flows.errors import InputError


def read_command_line(argv: Sequence[str]) -> Namespace:
    """Hydra's flags as attributes, and the words that are none of them as ``overrides``, wherever they stand.

    Raises:
        InputError: there is no such flag.
    """
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    try:
        arguments, unknown = parser.parse_known_intermixed_args(list(argv))
    except ArgumentError as error:
        raise InputError(f"{error}; --help says what there is") from error
    if unknown:
        name, _, value = unknown[0].lstrip("-").partition("=")
        raise InputError(f"there is no option {unknown[0]}: a setting is given as {name}={value or 'VALUE'}, no dashes")
    return arguments
