"""What a configuration is built to, and whether it may be built at all.

A configuration that comes out of a file (a checkpoint) may name classes of this project only, so that loading
somebody's file never runs somebody's code.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from flows.config.checking import Config, check, nodes
from flows.errors import InputError, NonFiniteError, StorageError, first_line, one_line


def build(config: Config, mistakes: tuple[type[Exception], ...] = (ValueError,)) -> Any:
    """Build the object that a plain, resolved configuration describes; every container in it is a plain one.

    Args:
        config: with ``_target_`` nodes, as Hydra knows them.
        mistakes: what constructors of other libraries raise when a value is wrong, rather than the code.

    Raises:
        InputError, NonFiniteError, StorageError: raised by what is built; without Hydra's wrapping.
        InputError: in place of ``mistakes``.
    """
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, (InputError, NonFiniteError, StorageError)):
            cause = cause.__cause__
        if isinstance(cause, (InputError, NonFiniteError, StorageError)):
            raise cause from error
        if isinstance(cause, mistakes):
            raise InputError(f"{config['_target_']}: {one_line(cause)[:300]}") from error
        raise


def build_trusted(config: Any, allowed: Iterable[type], packages: Sequence[str] = ("flows", "datamodules")) -> Any:
    """Build what a configuration from outside describes, if it names nothing but allowed classes of this project.

    Args:
        config: plain data, as found in a checkpoint.
        allowed: each named class must be one of these or derive from one.
        packages: top-level packages that may be imported.

    Raises:
        InputError: anything else is named, or the configuration contains an interpolation.
    """
    allowed = tuple(allowed)
    check_targets(config, allowed, packages)
    check(config)
    try:
        return build(config)
    except (InstantiationException, TypeError, AttributeError) as error:
        raise InputError(f"the stored configuration cannot be built: {first_line(error)}") from error


def check_targets(config: Any, allowed: tuple[type, ...], packages: Sequence[str]) -> None:
    """Refuse a configuration from outside that names anything but allowed classes; see :func:`build_trusted`."""
    for path, node in nodes(config):
        if isinstance(node, str) and "${" in node:
            raise InputError(f"the stored configuration contains an interpolation at {path}, which is never resolved")
        if isinstance(node, Mapping) and "_target_" in node:
            _require_allowed(path, node["_target_"], allowed, packages)


def _require_allowed(path: str, target: Any, allowed: tuple[type, ...], packages: Sequence[str]) -> None:
    refusal = InputError(
        f"the stored configuration wants to build {target!r} at {path or 'its root'}: only classes of "
        f"{' and '.join(packages)} may be built from a file"
    )
    if not isinstance(target, str):
        raise refusal
    module_name, _, name = target.rpartition(".")
    if module_name.split(".")[0] not in packages:
        raise refusal
    try:
        named = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the stored configuration names {target}, which this version does not have") from error
    if not (inspect.isclass(named) and issubclass(named, allowed) and named.__module__.split(".")[0] in packages):
        raise refusal
