"""Whether a configuration is right, what it is built to, and whether it may be built at all.

Every node is compared with the signature of what its ``_target_`` names: unknown arguments and values of the wrong
type are the user's mistake and get one line. A configuration that comes out of a file (a checkpoint) may name classes
of this project only, so that loading somebody's file never runs somebody's code.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from flows.errors import InputError, NonFiniteError, StorageError, first_line, one_line

Config = Mapping[str, Any]

SPECIAL_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(config: Any) -> None:
    """Compare every node of a resolved configuration with the signature of what its ``_target_`` names.

    Raises:
        InputError: a target that does not exist, an argument that it does not take (naming the nearest that it does),
            or a value of the wrong type; in one line with the full path of the key.
    """
    for path, node in nodes(config):
        if isinstance(node, Mapping) and "_target_" in node:
            _check_node(path, node)


def _check_node(path: str, node: Config) -> None:
    target = node["_target_"]
    try:
        called: Callable[..., Any] = get_object(target)
    except Exception as error:  # Hydra raises plain Exceptions of several kinds here
        raise InputError(f"{path}._target_ names {target}, which cannot be imported: {first_line(error)}") from error
    parameters = inspect.signature(called).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _type_hints(called)
    for key, value in node.items():
        if key in SPECIAL_KEYS:
            continue
        if key not in parameters and not takes_any:
            raise InputError(f"{path}.{key}: {target} takes no '{key}'{did_you_mean(key, parameters)}")
        if complaint := _complaint(value, _plain(hints.get(key, Any))):
            raise InputError(f"{path}.{key} must be {complaint}, not {value!r}")


def require_targets(config: Any, known: Collection[str], packages: Sequence[str]) -> None:
    """Refuse a configuration that wants to build something else than what is known, or what a trusted package has.

    Raises:
        InputError: naming it.
    """
    for path, node in nodes(config):
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if target is not None and target not in known and str(target).split(".")[0] not in packages:
            raise InputError(
                f"{path} would build {target!r}, which neither conf/ nor you name: give hydra.searchpath=[...] or "
                f"{path}._target_={target} again"
            )


def did_you_mean(word: str, candidates: Iterable[str], *, num: int = 3) -> str:
    """``; did you mean 'a' or 'b'?`` with the nearest candidates, or nothing if none is near."""
    return suggestion(difflib.get_close_matches(word, list(dict.fromkeys(candidates)), n=num, cutoff=0.6))


def suggestion(near: Sequence[str]) -> str:
    """``; did you mean 'a' or 'b'?``, or nothing if there is nothing to suggest."""
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node below ``node``, itself included, with its dotted path."""
    yield path, node
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    for key, child in children:
        yield from nodes(child, f"{path}.{key}" if path else str(key))


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
    where = f"the stored configuration wants to build {target!r} at {path or 'its root'}"
    module_name, _, name = str(target).rpartition(".")
    package = module_name.split(".")[0]
    remedy = f"if you trust it, packages=[{package}] allows those of your own"
    refusal = InputError(f"{where}: only classes of {' and '.join(packages)} may be built from a file; {remedy}")
    if package not in packages:
        raise refusal
    try:
        named = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the stored configuration names {target}, which this version does not have") from error
    kinds = " or ".join(kind.__name__ for kind in allowed)
    if not (inspect.isclass(named) and issubclass(named, allowed)):
        raise InputError(f"{where}: it is not a class that derives from {kinds}")
    if named.__module__.split(".")[0] not in packages:
        raise refusal


def _type_hints(called: Callable[..., Any]) -> dict[str, Any]:
    # A data class states its arguments as fields, each in the module that declares it.
    states_itself = dataclasses.is_dataclass(called) or not inspect.isclass(called)
    try:
        return typing.get_type_hints(called if states_itself else called.__init__)
    except (NameError, TypeError):  # hints of other people's code that cannot be evaluated are not checked
        return {}


def _is_tensor(hint: Any) -> bool:
    return getattr(hint, "__name__", "") == "Tensor"  # without the import of torch, which takes seconds


def _plain(hint: Any) -> Any:
    """A type hint without the tensors that a value may also be: YAML has none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return typing.Union[tuple(_plain(argument) for argument in arguments if not _is_tensor(argument))]  # noqa: UP007 | joins no list
    return origin[tuple(map(_plain, arguments))] if origin in (list, tuple) else hint


def _complaint(value: Any, hint: Any) -> str:
    """What a value of YAML should be by a type hint, in pydantic's words; empty if it is that, or if none can say."""
    if isinstance(value, Mapping) and "_target_" in value:
        return ""  # a node that is built into an object first
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)  # which knows no tuples, as YAML does not
    except PydanticSchemaGenerationError:
        return ""
    except ValidationError as error:
        words = " or ".join(dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in error.errors()))
        return words.replace("Field required", "longer").replace("Tuple should have", "a list of")
    return ""
