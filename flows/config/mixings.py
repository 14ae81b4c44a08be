"""The mixing layers that the configuration offers, for what is not configured itself: benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from flows.home import CONFIG_DIR
from flows.layers import Layer

MIXINGS = sorted(path.stem for path in (CONFIG_DIR / "mixing").glob("*.yaml"))
"""The names of the files in ``conf/mixing``."""


@cache
def mixing(name: str) -> Callable[..., Layer]:
    """The factory that an option of ``conf/mixing`` describes."""
    from hydra import compose, initialize_config_dir  # the names alone need no Hydra
    from omegaconf import OmegaConf

    from flows.config.building import build

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose(f"mixing/{name}").mixing, resolve=True)
    return build(config)
