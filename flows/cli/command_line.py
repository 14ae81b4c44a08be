"""Is this command line right? Answered before any work, in one line that names the near matches."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows.cli.help import help_text
from flows.config.building import check, did_you_mean, is_node, nodes, require_targets, suggestion
from flows.config.hydra_seams import read_command_line
from flows.config.matching import matches
from flows.config.overrides import SINGLE, as_text, parse
from flows.errors import InputError, first_line
from flows.runs.claim import require_writable, run_name

MAX_CHOICES_CHECKED = 64
"""How many single choices of a sweep are composed beforehand; the rest are checked as they come up."""

SEARCH = "hparams_search"
"""The group that chooses a search."""


def register_schemas(config_dir: Path) -> None:
    """Make known to Hydra what may stand at each program's root, from its YAML file; and ``${run_name:}``.

    The groups that have an option are dictionaries: their contents are checked against the signatures of what they
    build. Any other key has the type of its default; null stands for a text, or for the group of that name, and what
    must be given may be anything.
    """
    OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
    for path in config_dir.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        groups = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
        content.pop("hydra", None)
        keys: dict[str, Any] = {
            group: {} for entry in groups for group, option in entry.items() if option and " " not in group
        }
        optional = {group for entry in groups for group, option in entry.items() if not option}
        fields = [
            (key, dict[str, Any] | None if key in optional else _type_of(default), field(default=MISSING))
            for key, default in (keys | content).items()
        ]
        ConfigStore.instance().store(name=f"{path.stem}_schema", node=make_dataclass("Root", fields))


def _type_of(default: Any) -> Any:
    if default is None:
        return str | None
    if isinstance(default, dict):
        return dict[str, Any]
    return Any if default == MISSING else type(default)


def check_command_line(
    config_dir: Path, config_name: str, argv: list[str], *, given: list[str] | None = None
) -> list[str]:
    """Compose the configuration that ``argv`` asks for, and every choice of a sweep on its own, and check each.

    Args:
        config_dir: where the YAML files are.
        config_name: the program's root configuration.
        argv: the command line without the program's name.
        given: the part of it that the user gave, if the rest comes out of a checkpoint. Then nothing may be built that
            neither the YAML files name, nor the user, nor a package that the user trusts has.

    Returns:
        The command line with ``experiment=glob(table4/*)`` as the list of the options that it matches: Hydra's own glob
        knows no folders.

    Raises:
        InputError: a group, option, key or value that does not exist or has the wrong type.
        StorageError: the run folder, or the file to write, cannot be made there.
    """
    arguments = read_command_line(argv)
    flags = [word for word in argv if word not in arguments.overrides]
    argv = [*flags, *arguments.overrides]  # Hydra wants its flags first
    if arguments.hydra_help or arguments.shell_completion or arguments.info:
        return argv
    if arguments.multirun and arguments.cfg:
        raise InputError("--cfg shows the configuration of a single run: leave -m out")
    _require_shipped_files(arguments)
    overrides = parse(arguments.overrides)
    is_replayed = given is not None
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir)):
        is_sweep = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
        if not is_sweep:
            _require_single_run(overrides, is_replayed)
        choices = {str(override.input_line): _choices(override) for override in overrides}
        for lines in _single_runs(list(choices.values())):
            config = compose_resolved(config_name, lines)
            if "budget" in config and matches(config):
                config["model"]["hidden_channels"] = 1  # found when the run starts
            if given is not None:
                require_targets(config, _trusted_targets(config_dir, given), config["packages"])
            check(config)
            if is_sweep and config.get("estimate"):
                raise InputError("estimate=true is for a single run: leave -m out")
            if "run_dir" in config:
                require_writable(Path(config["run_dir"]))
                require_writable(Path(HydraConfig.get().sweep.dir))
            for key in ("output", "preview"):
                if config.get(key) is not None:
                    require_writable(Path(config[key]).parent)
    globs = [str(override.input_line) for override in overrides if isinstance(override.value(), Glob)]
    options = {word: ",".join(line.partition("=")[2] for line in choices[word]) for word in globs}
    return [f"{word.partition('=')[0]}={options[word]}" if word in options else word for word in argv]


def _require_shipped_files(arguments: Namespace) -> None:
    """Refuse Hydra's options that replace the configuration files, which the jobs of a sweep would not be given."""
    for name in ("config_dir", "config_path", "config_name"):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is not supported: add a folder of your own configuration files by "
                f"'hydra.searchpath=[/FOLDER]', which jobs and other processes are given too"
            )


def _require_single_run(overrides: list[Override], is_replayed: bool) -> None:
    """Refuse what one run cannot do. A trial is one: of a search, or resumed from its checkpoint."""
    is_trial = is_replayed or any(override.input_line == SINGLE for override in overrides)
    for override in overrides:
        if override.is_sweep_override():
            key, _, value = str(override.input_line).partition("=")
            raise InputError(
                f"{override.input_line!r} is a sweep of several values: add -m to run each of them; for a text with "
                f"these characters write {as_text(key, value)}"
            )
        if override.key_or_group == SEARCH and override.value() is not None and not is_trial:
            raise InputError(f"{override.input_line!r} searches among several values: add -m")


def help_for(config_dir: Path, config_name: str, argv: list[str]) -> str | None:
    """What ``--help`` prints, about the configuration that the rest of the command line leads to.

    Returns:
        ``None`` if nobody asks for help.

    Raises:
        InputError: that configuration does not exist.
    """
    arguments = read_command_line(argv)
    if not arguments.help:
        return None
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir)):
        try:
            options = {group: _options(group) for group in _groups()}
            return help_text(config_dir, config_name, arguments.overrides, options)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(_explain(error, config_name, parse(arguments.overrides))) from error


def compose_resolved(config_name: str, overrides: list[str]) -> dict[str, Any]:
    """The plain configuration for some overrides; Hydra must be initialised. Raises ``InputError`` like the caller."""
    try:
        config = compose(config_name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        without = [str(key) for key in own if OmegaConf.is_missing(own, str(key))]  # before what refers to them
        missing = without or sorted(str(key) for key in OmegaConf.missing_keys(own))
        if missing:
            raise InputError(f"{missing[0]}=... must be given; --help says what it is")
        known = [str(key) for key in ConfigStore.instance().load(f"{config_name}_schema.yaml").node]
        unknown = [str(key) for key in own if key not in known]
        if unknown:  # by + or ++, which add what there is not
            raise InputError(f"nothing would read {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        return OmegaConf.to_container(own, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error, config_name, parse(overrides))) from error


def _trusted_targets(config_dir: Path, given: list[str]) -> set[str]:
    """Everything that the configuration files and the user name as a target; the user may have files of their own."""
    searched = [str(place).removeprefix("file://") for place in HydraConfig.get().searchpath]
    files = [path for folder in (config_dir, *map(Path, searched)) for path in folder.rglob("*.yaml")]
    lines = (line.strip() for path in files for line in path.read_text().splitlines())
    trusted = {line.removeprefix("_target_:").strip() for line in lines if line.startswith("_target_:")}
    for override in parse(read_command_line(given).overrides):
        named = {override.key_or_group.rpartition(".")[2]: override.value()}
        trusted |= {node["_target_"] for _, node in nodes(named) if is_node(node)}
    return trusted


def _single_runs(choices: list[list[str]]) -> Iterator[list[str]]:
    """Command lines without sweeps that together contain every choice of every sweep."""
    first = [options[0] for options in choices]
    yield first
    count = 0
    for position, options in enumerate(choices):
        for option in options[1:]:
            count += 1
            if count > MAX_CHOICES_CHECKED:
                return
            yield [*first[:position], option, *first[position + 1 :]]


def _choices(override: Override) -> list[str]:
    """The overrides, without a sweep, that an override stands for."""
    key = override.get_key_element()
    value = override.value()
    if value is None and (options := _options(override.key_or_group)) and not override.is_delete():
        raise InputError(f"{override.input_line!r} names no option; some are {', '.join(options[:4])}")
    if isinstance(value, Glob):
        matching = [name for name in _options(override.key_or_group) if _glob_matches(value, name)]
        if not matching:
            raise InputError(f"{override.input_line!r} matches no option of {override.key_or_group!r}")
        return [f"{key}={name}" for name in matching]
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    if override.is_sweep_override():
        return [f"{key}={text}" for text in override.sweep_string_iterator()]
    assert override.input_line is not None
    return [override.input_line]


def _glob_matches(glob: Glob, name: str) -> bool:
    """Folder by folder, as a shell does: ``*`` does not match ``/``."""

    def matches_any(patterns: list[str]) -> bool:
        return any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in patterns)

    return matches_any(glob.include) and not matches_any(glob.exclude)


def _explain(error: Exception, config_name: str, overrides: list[Override]) -> str:
    """One line that says which override is wrong and what was probably meant."""
    groups = {group: _options(group) for group in _groups()}
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key in groups and not override.is_delete() and isinstance(value, str) and value not in groups[key]:
            return f"there is no {key}={value}{did_you_mean(value, groups[key])} (available: {', '.join(groups[key])})"
    keys = _keys(config_name, [override for override in overrides if override.key_or_group in groups])
    for override in overrides:
        key = override.key_or_group
        if key in groups or override.is_add():
            continue
        if key not in keys:
            of_hydra = [name.startswith(("hydra.", "hydra/")) for name in (key, *keys, *groups)]
            alike = [name for name, same in zip([*keys, *groups], of_hydra[1:], strict=True) if same == of_hydra[0]]
            same_leaf = [name for name in alike if name.split(".")[-1] == key.split(".")[-1]][:3]
            near = did_you_mean(key, alike) or suggestion(same_leaf)  # lr for optimizer.lr
            add = f"; +{override.input_line} adds it" if key.startswith("trainer.") else ""
            return f"there is no configuration key {key!r}{near}; --help lists what there is{add}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    where = f"{cause.full_key}: " if isinstance(cause, OmegaConfBaseException) and cause.full_key else ""
    removed = next((f"; {override.input_line} leaves it out" for override in overrides if override.is_delete()), "")
    return f"{where}{first_line(cause)}{removed}"


def _keys(config_name: str, group_overrides: list[Override]) -> list[str]:
    """All dotted keys of the configuration under the given choice of groups."""
    lines = [override.input_line for override in group_overrides if override.input_line is not None]
    try:
        config = compose(config_name, lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        config = compose(config_name, return_hydra_config=True)
    return [path for path, _ in nodes(OmegaConf.to_container(config)) if not path.endswith("_target_")]


def _groups(parent: str = "") -> Iterator[str]:
    loader = GlobalHydra.instance().config_loader()
    for group in loader.list_groups(parent):
        path = f"{parent}/{group}" if parent else group
        yield path
        yield from _groups(path)


def _options(group: str) -> list[str]:
    """Options of a group, also those in folders below it (``laptop/table2``)."""
    loader = GlobalHydra.instance().config_loader()
    options = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    nested = [f"{child}/{name}" for child in loader.list_groups(group) for name in _options(f"{group}/{child}")]
    return [*options, *nested]
