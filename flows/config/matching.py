"""``model.hidden_channels=match budget=...``: the width of a model that is to be as large as another one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flows.config.building import build, did_you_mean
from flows.errors import InputError

if TYPE_CHECKING:  # torch takes seconds, which matches() need not
    from flows.measures.budget import ParameterCount

MATCH = "match"

Config = dict[str, Any]


def matches(config: Config) -> bool:
    """Whether the width is to be found.

    Raises:
        InputError: half of what is needed is there.
    """
    wanted, budget = config["model"].get("hidden_channels") == MATCH, config["budget"]
    if wanted and budget is None:
        raise InputError("model.hidden_channels=match needs a budget: a number of parameters, or budget=conv1x1@512")
    if budget is not None and not wanted:
        raise InputError("budget= is for model.hidden_channels=match; remove one or add the other")
    return wanted


def resolve_width(config: Config, config_name: str = "train") -> str | None:
    """Put the width that matches the budget into ``config``.

    The budget is a number of parameters, or ``MIXING@WIDTH``: those of the same model with another mixing layer, as
    its file in ``conf/mixing`` has it, at that width.

    Args:
        config: plain and resolved; changed where ``model.hidden_channels`` is ``match``.
        config_name: the root configuration, which the other mixing layer is composed in; Hydra must be initialised.

    Returns:
        A line for the user that says what was found, if anything was to be.

    Raises:
        InputError: a budget that cannot be read, or that no width matches.
    """
    if not matches(config):
        return None
    model = config["model"]
    budget, source = _budget(config["budget"], model, config_name)
    count = _count(model)
    width = count.width_for(budget)
    model["hidden_channels"] = width
    difference = 100 * (count(width) - budget) / budget
    return (
        f"hidden_channels {width}: {count(width):,} parameters for a budget of {budget:,}{source} ({difference:+.2f} %)"
    )


def _budget(text: str | int, model: Config, config_name: str) -> tuple[int, str]:
    if re.fullmatch(r"[1-9][0-9_]*", str(text)):
        return int(text), ""
    reference = re.fullmatch(r"(\w+)@([1-9][0-9]*)", str(text))
    if reference is None:
        raise InputError(f"budget must be a number of parameters or MIXING@WIDTH, like conv1x1@512, not {text!r}")
    name, options = reference[1], GlobalHydra.instance().config_loader().get_group_options("mixing")
    if name not in options:
        raise InputError(f"budget={text}: there is no mixing={name}{did_you_mean(name, options)}")
    mixing = OmegaConf.to_container(compose(config_name, [f"mixing={name}"]).mixing, resolve=True)
    return _count({**model, "mixing": mixing})(int(reference[2])), f" ({text})"


def _count(model: Config) -> ParameterCount:
    """How many parameters a model has at each width."""
    from flows.measures.budget import ParameterCount

    return ParameterCount.of(lambda width: build({**model, "hidden_channels": width}))
