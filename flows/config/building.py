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
import pkgutil
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from flows.errors import InputError, NonFiniteError, StorageError, first_line, one_line

Config = Mapping[str, Any]

SPECIAL_KEYS = {
    "_target_": str,
    "_partial_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_recursive_": bool,
    "_args_": list[Any],
}
"""Hydra's own keys of a node."""

OBJECTS, FACTORIES, NAMED_OBJECTS = ("data", "model", "trainer"), ("optimizer", "schedule"), ("callbacks", "logger")
"""What is built of the root of a configuration: objects, factories (``_partial_``), and objects by their names."""

LIBRARIES = ("torch", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf")
"""Those that are given nothing but what a configuration holds: what they raise at that is the user's mistake."""

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

TOO_LARGE = re.compile("allocate|storage size|out of memory|overflow", re.IGNORECASE)
"""How torch says that something does not fit into memory."""


def check(config: Any) -> None:
    """Compare every node of a resolved configuration with the signature of what its ``_target_`` names.

    Raises:
        InputError: a target does not exist, an argument is unknown (the nearest is named) or missing, or a value has
            the wrong type. One line, with the full path of the key.
    """
    for path, value in _parts(config):
        if not is_node(value):
            raise InputError(f"{path} must be a node with _target_{' or null' if '.' in path else ''}, not {value!r}")
        if bool(value.get("_partial_")) != (path in FACTORIES):
            raise InputError(f"{path}._partial_ must be {str(path in FACTORIES).lower()}")
    for path, node in nodes(config):
        if is_node(node):
            _check_node(path, node)


def _parts(config: Config) -> Iterator[tuple[str, Any]]:
    """What must be a node, of what there is, with its path. Which may be null, the types at the root say."""
    yield from ((key, config[key]) for key in (*OBJECTS, *FACTORIES) if config.get(key) is not None)
    for group in NAMED_OBJECTS:
        for name, value in config.get(group, {}).items():
            # The loggers' group has settings beside its nodes.
            if value is not None and (group == "callbacks" or isinstance(value, Mapping)):
                yield f"{group}.{name}", value


def is_node(value: Any) -> bool:
    """Whether a value describes an object that Hydra builds."""
    return isinstance(value, Mapping) and "_target_" in value


def _check_node(path: str, node: Config) -> None:
    target = node["_target_"]
    try:
        called: Callable[..., Any] = pkgutil.resolve_name(target)
        parameters = inspect.signature(called).parameters
    except ModuleNotFoundError as error:
        if str(error.name) not in target:
            raise  # a library that is not installed
        raise InputError(f"{path}._target_ names {target}, which cannot be imported: {first_line(error)}") from error
    except Exception as error:  # anything may be named there
        raise InputError(f"{path}._target_ names {target}, which cannot be imported: {first_line(error)}") from error
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = type_hints(called) | SPECIAL_KEYS
    for key, value in node.items():
        if key not in parameters and key not in SPECIAL_KEYS and not takes_any:
            raise InputError(f"{path}.{key}: {target} takes no '{key}'{did_you_mean(key, parameters)}")
        if complaint := _complaint(value, _plain(hints.get(key, Any))):
            raise InputError(f"{path}.{key} must be {complaint}, not {value!r}")
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    lacking = [name for name in needed if name not in node and parameters[name].kind not in VARIABLE]
    if lacking and not node.get("_partial_") and not node.get("_args_"):
        raise InputError(f"{path}: {target} needs '{lacking[0]}'")


def require_targets(config: Any, known: Collection[str], packages: Sequence[str]) -> None:
    """Refuse a configuration that wants to build something else than what is known, or what a trusted package has.

    Raises:
        InputError: naming it.
    """
    for path, node in nodes(config):
        if is_node(node) and node["_target_"] not in known and str(node["_target_"]).split(".")[0] not in packages:
            raise InputError(
                f"{path} would build {node['_target_']!r}, which neither conf/ nor you name: give "
                f"hydra.searchpath=[...] or {path}._target_={node['_target_']} again"
            )


def did_you_mean(word: str, candidates: Iterable[str], *, num: int = 3) -> str:
    """``; did you mean 'a' or 'b'?`` with the nearest candidates, or nothing if none is near."""
    return suggestion(difflib.get_close_matches(word, list(dict.fromkeys(candidates)), n=num, cutoff=0.6))


def suggestion(near: Sequence[str]) -> str:
    """``; did you mean 'a' or 'b'?``, or nothing if there is nothing to suggest."""
    return f"; did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else ""


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


def build(config: Config) -> Any:
    """Build the object that a plain, resolved configuration describes; every container in it is a plain one.

    This is where other libraries' exceptions become ours: what they raise at the values of a configuration.

    Args:
        config: with ``_target_`` nodes, as Hydra knows them.

    Raises:
        InputError, NonFiniteError, StorageError: raised by what is built; without Hydra's wrapping.
        InputError: a constructor has refused a value, or there is no memory for it.
    """
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, (InputError, NonFiniteError, StorageError)):
            cause = cause.__cause__
        if isinstance(cause, (InputError, NonFiniteError, StorageError)):
            raise cause from error
        called = re.search(r"Error in call to target '(.+?)'", str(error))
        target = called[1] if called else config["_target_"]
        is_theirs = any(name.split(".")[0] in LIBRARIES for name in (target, type(cause).__module__))
        if is_theirs or isinstance(cause, ValueError) or TOO_LARGE.search(str(cause)):
            raise InputError(f"{target}: {one_line(cause)[:300]}") from error
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
        if is_node(node):
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


def type_hints(called: Callable[..., Any]) -> dict[str, Any]:
    """The types of what is called takes, by name; empty if they cannot be evaluated."""
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
    if is_node(value):  # which is built into an object first
        is_factory = typing.get_origin(hint) is Callable
        return "a factory: with _partial_: true" if is_factory and not value.get("_partial_") else ""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)  # which knows no tuples, as YAML does not
    except PydanticUserError:
        return ""
    except ValidationError as error:
        words = " or ".join(dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in error.errors()))
        return words.replace("Field required", "longer").replace("Tuple should have", "a list of")
    return ""
