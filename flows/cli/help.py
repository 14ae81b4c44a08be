"""``--help`` of every program: its YAML file's own words, and every key with what its file says about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml
from hydra import compose
from omegaconf import OmegaConf

COMMENTED = re.compile(r"(?P<indent> *)(?P<key>\w+):(?:\s+(?!#)[^#]*)?(?:\s*# (?P<comment>.*))?$")


def help_text(config_dir: Path, config_name: str, overrides: list[str], groups: Mapping[str, list[str]]) -> str:
    """A program's help; Hydra must be initialised.

    Args:
        config_dir: where the YAML files are.
        config_name: the program's root configuration.
        overrides: the help is for the configuration that they lead to.
        groups: the options of each group.
    """
    config = compose(config_name, overrides, return_hydra_config=True)
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if option}
    template = OmegaConf.to_container(config.hydra.help, resolve=False)["template"]  # type: ignore[index,call-overload]
    options = [f"{group}: {', '.join(names)}" for group, names in groups.items() if "/" not in group]
    explained = explanations(config_dir, config_name, choices)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    keys = [
        f"{key}={_text(value)}" + (f"  # {explained[key]}" if key in explained else "")
        for key, value in sorted(
            _leaves(OmegaConf.to_container(own)), key=lambda leaf: "." in leaf[0]
        )  # the root's first
    ]
    return Template(template).safe_substitute(APP_CONFIG_GROUPS="\n".join(options), CONFIG="\n".join(keys))


def explanations(config_dir: Path, config_name: str, choices: Mapping[str, str]) -> dict[str, str]:
    """What the YAML files say about each dotted key, at these choices of groups."""
    explained = _comments(config_dir / f"{config_name}.yaml", "", config_dir)
    for group, option in choices.items():
        path = config_dir / group / f"{option}.yaml"
        if path.exists():  # or it is Hydra's, or a user's own
            explained |= _comments(path, f"{group}.", config_dir)
    return explained


def _comments(path: Path, prefix: str, config_dir: Path) -> dict[str, str]:
    """The comments of a file, and of those that it begins with."""
    text = path.read_text()
    prefix = "" if text.startswith("# @package _global_") else prefix
    found: dict[str, str] = {}
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str):
            folder = config_dir if entry.startswith("/") else path.parent
            parent = folder / f"{entry.lstrip('/').partition('@')[0]}.yaml"
            found |= _comments(parent, prefix, config_dir) if parent.exists() else {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := COMMENTED.match(line):
            indent = len(match["indent"])
            above = [*(entry for entry in above if entry[0] < indent), (indent, match["key"])]
            if match["comment"]:
                found[prefix + ".".join(key for _, key in above)] = match["comment"]
    return found


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that has a value, with its dotted path; of a node what it is built from, not what it is."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{key}.")
        elif key not in ("_target_", "_partial_") and not str(value).startswith("${.."):  # which is set elsewhere
            yield f"{path}{key}", value


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
