"""The mixing layers that the configuration offers, for what is not configured itself: benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from flows.home import CONFIG_DIR
from flows.layers import Conv1x1, EmergingConv2d, Layer, MaskedAutoregressiveFlow, PeriodicConv2d

PAPERS: dict[str, Callable[..., Layer]] = {
    "conv1x1": Conv1x1,
    "emerging": EmergingConv2d,
    "maf": MaskedAutoregressiveFlow,
    "periodic": PeriodicConv2d,
}
"""Those that there are where no Hydra reads ``conf/mixing``: on a machine with torch and numpy alone."""

HAS_HYDRA = find_spec("hydra") is not None

MIXINGS = sorted(path.stem for path in (CONFIG_DIR / "mixing").glob("*.yaml")) if HAS_HYDRA else list(PAPERS)
"""The names of the files in ``conf/mixing``."""


@cache
def mixing(name: str) -> Callable[..., Layer]:
    """The factory that an option of ``conf/mixing`` describes."""
    if not HAS_HYDRA:
        return PAPERS[name]
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from flows.config.building import build

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose(f"mixing/{name}").mixing, resolve=True)
    return build(config)
