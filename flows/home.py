"""Where the project is: in a clone, or in an installed package, which may lack what only some of its parts need."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

PROGRAMS = ("train", "sample", "evaluate", "prepare", "report")

INSTALLED, CLONE = Path(__file__).parent / "home", Path(__file__).resolve().parents[1]

HOME = INSTALLED if INSTALLED.is_dir() else CLONE
"""The folder of ``conf/`` and of the programs; ``setup.py`` puts them into the wheel."""

CONFIG_DIR = HOME / "conf"


def as_typed(text: str) -> str:
    """A text with commands like ``python train.py seed=1``, as a user types them here."""
    if HOME == CLONE:
        return text
    for name in PROGRAMS:
        text = text.replace(f"python {name}.py", f"flows {name}")
    return text


DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""What is installed under another name than it is imported."""


def remedy_without(module: str) -> str | None:
    """How to get a library that is missing; ``None`` if it is none that the project uses."""
    distribution = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    if HOME == CLONE:
        if f'"{distribution}' not in (HOME / "pyproject.toml").read_text():
            return None
        launcher = os.path.join(os.path.relpath(HOME), "with-env")
        return f"run it in the project's environment: {shlex.join([launcher, 'python', *sys.argv])}"
    from importlib.metadata import requires  # takes longer than all of this

    libraries = requires("emerging-flows") or []
    found = (re.fullmatch(rf"{distribution}\b[^;]*; extra == \W(\w+)\W", line) for line in libraries)
    extras = [match[1] for match in found if match]
    return f"pip install 'emerging-flows[{extras[0]}]'" if extras else None
