"""The shipped configuration: what there is of it, composed and checked as the programs do."""

import copy
from functools import cache

import hydra
from hydra import initialize_config_dir

from flows.cli.command_line import check_command_line, compose_resolved, register_schemas
from flows.config.mixings import MIXINGS, mixing
from support.programs import ROOT

CONF = ROOT / "conf"
__all__ = [
    "CONF",
    "GROUPS",
    "MIXINGS",
    "NEEDED",
    "OPTIONS",
    "check_train",
    "compose",
    "compose_typed",
    "mixing",
    "options",
]

register_schemas(CONF)
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "local"))
OPTIONS = [
    (group, str(path.relative_to(CONF / group).with_suffix("")))
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
]


def options(group):
    """The names of a group's options."""
    return [option for name, option in OPTIONS if name == group]


def check_train(*arguments):
    check_command_line(CONF, "train", list(arguments))


def compose(*overrides, root="train"):
    """The plain configuration of a program for some overrides."""
    return copy.deepcopy(_composed(root, overrides))


@cache
def _composed(root, overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose_resolved(root, list(overrides))


def compose_typed(*overrides, root):
    """The same as Hydra has it, with the types of the root's keys."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(root, list(overrides))


NEEDED = {"train": [], "prepare": [], "evaluate": ["checkpoint=x"], "sample": ["checkpoint=x"], "report": ["runs=x"]}
"""The programs, and what each of them must be given."""
