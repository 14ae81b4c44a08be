"""Whatever stands at a key, of every program: what cannot be used is refused in one line, never by a traceback."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from support.configs import NEEDED, compose, compose_typed

from flows import InputError
from flows.config.building import build, check, nodes
from flows.config.matching import matches
from flows.numerics import require_precision
from flows.randomness import require_seed
from flows.training.optimizers import make_optimizer
from flows.training.run import build_trainer

BAD = ["", None, "word", -1, 0, 10**18, 1.5, [], {}, "/proc/\0x", float("nan")]

GIVEN = NEEDED | {
    "train": ["experiment=smoke", "data=digits", "trainer=cpu", "logger=tensorboard"],
    "prepare": ["data=images", "data.root=pictures"],
}


def _set(config, path, value):
    """A copy of a plain configuration with another value at a dotted path; nodes beside the path are shared."""
    if not path:
        return value
    key, _, rest = path.partition(".")
    place = int(key) if isinstance(config, list) else key
    changed = copy.copy(config)
    changed[place] = _set(config[place], rest, value)
    return changed


def _build(config, path):
    """Everything that the value at ``path`` takes part in, without a training."""
    part = path.split(".")[0]
    if part in ("data", "model"):
        build(config[part])
    elif part in ("optimizer", "parameter_groups", "schedule"):
        optimizer = make_optimizer(torch.nn.Linear(1, 1), build(config["optimizer"]), config["parameter_groups"])
        try:
            build(config["schedule"])(optimizer)
        except ValueError as error:
            raise InputError from error
    else:
        matches(config)
        require_seed(config["seed"])
        require_precision(config["precision"])
        build_trainer(config, [])


@pytest.mark.slow
@pytest.mark.parametrize("program", GIVEN)
def test_no_value_of_any_key_ends_in_a_traceback(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, typed = compose(*GIVEN[program], root=program), compose_typed(*GIVEN[program], root=program)
    refused = 0
    for path in [path for path, _ in nodes(config) if path]:
        for value in BAD:
            try:
                changed = _set(config, path, value)
                if "." not in path:  # Hydra's own check of types, which makes a text of a number where one is due
                    changed_root = copy.deepcopy(typed)
                    OmegaConf.update(changed_root, path, value, merge=False)
                    changed[path] = OmegaConf.to_container(changed_root, resolve=True)[path]
                check(changed)
                if program == "train":
                    _build(changed, path)
            except (InputError, OmegaConfBaseException):
                refused += 1
            except Exception as error:
                pytest.fail(f"{path}={value!r}: {type(error).__name__}: {error}")
    assert refused > 10
