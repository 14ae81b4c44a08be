"""Reading a flow back from a checkpoint, without running anything that the file says.

A checkpoint is Lightning's, with five entries of this project:

* ``config``: the resolved configuration as plain data;
* ``overrides``: the command line that led to it;
* ``format``: its version;
* ``within_step``: whether gradients were being accumulated, which no checkpoint holds;
* ``written``: a counter that tells which of several is the newest.

Its tensors are read with ``weights_only=True``. Of the configuration only this project's own classes are built, and
those of packages that the user trusts.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.config.building import build_trusted
from flows.errors import InputError, first_line
from flows.runs.layout import BEST, CHECKPOINTS, CONFIG, LAST, RUNS

if TYPE_CHECKING:  # torch takes seconds, which finding a checkpoint need not
    import torch

    from flows.models.base import DensityModel

FORMAT = 2
"""Version of the project's entries in a checkpoint."""

Weights = Literal["raw", "averaged"]

FLOW_PREFIX = "flow."
"""Where the Lightning module keeps the flow."""

NAMED = {"best": BEST, "last": LAST}
"""Checkpoints that a user may call by a word."""

_UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, KeyError, ValueError)
"""What torch raises for a file that is no checkpoint."""


def find_checkpoint(given: str | Path, prefer: str = "best") -> Path:
    """The checkpoint file that a user means.

    Args:
        given: a checkpoint file; a run's folder; or ``best`` or ``last``, those of the newest run below ``runs/``.
        prefer: which one of a run's folder.

    Raises:
        InputError: there is none.
    """
    path = Path(str(given))  # a number from a configuration is a name too
    if str(given) in NAMED and not path.exists():
        found = RUNS.glob(f"**/{CHECKPOINTS}/{NAMED[str(given)]}")
        if newest := max(found, key=age, default=None):
            return newest
        raise InputError(f"checkpoint={given} means the newest run below {RUNS}/, but no run there has one")
    if path.is_dir():
        for name in sorted(NAMED, key=lambda name: name != prefer):
            if (path / CHECKPOINTS / NAMED[name]).is_file():
                return path / CHECKPOINTS / NAMED[name]
        if (path / CONFIG).is_file():
            raise InputError(f"the run in {path} has saved nothing yet: run_dir={path} resume=auto begins it again")
        raise InputError(f"{path} is not a run's folder: it has no {CHECKPOINTS}/{NAMED[prefer]}")
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: give a .ckpt file, a run's folder, or best or last")
    return path


def newest_whole(
    folder: Path, is_wanted: Callable[[dict[str, Any]], bool] = lambda content: True
) -> tuple[Path | None, list[InputError]]:
    """The checkpoint written last, of those that are whole and wanted, and what is wrong with damaged ones.

    "Last" is not by the step: a training that went back has later checkpoints of earlier steps. Checkpoints written
    within a step of the optimiser are skipped: resuming would make that step with a part of its gradient.
    """
    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=age, reverse=True):
        try:
            content = read_checkpoint(path)
        except InputError as error:
            damaged.append(error)
        else:
            if is_wanted(content) and not content.get("within_step", False):
                return path, damaged
    return None, damaged


def age(path: Path) -> tuple[int, int]:
    """What sorts checkpoints by when they were written, the newest last: a counter inside the file, and its step.

    A copy of a run's folder may have other times, or the same for all files. They count for files that do not say.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # without its tensors
        return content.get("written", path.stat().st_mtime_ns), content["global_step"]
    except (*_UNREADABLE, TypeError, AttributeError):
        return path.stat().st_mtime_ns, 0


def newest_good(folder: Path, failed_step: int) -> Path | None:
    """The newest whole checkpoint with finite weights from before the step with which a training has failed.

    Going on from that step's own weights, however slowly, would meet the same batch and fail at once.

    Args:
        folder: where the checkpoints lie.
        failed_step: the step of the optimiser that could not be made.
    """
    import torch

    def is_good(content: dict[str, Any]) -> bool:
        states = [content["state_dict"], content.get("current_model_state", {})]
        is_finite = all(bool(torch.isfinite(value).all()) for state in states for value in state.values())
        return is_finite and content["global_step"] < failed_step

    return newest_whole(folder, is_good)[0]


def require_whole(path: str | Path) -> None:
    """Compare everything that a checkpoint file holds with its checksums.

    The file is a zip archive, in which torch stores a CRC-32 of every record; but torch does not look at them when it
    reads. A flipped bit in a weight would be a wrong weight.

    Raises:
        InputError: something is missing or has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(_unreadable(path, first_line(error))) from error
    if damaged is not None:
        raise InputError(_unreadable(path, f"the checksum of {damaged} is wrong"))


def _unreadable(path: str | Path, reason: str) -> str:
    return f"{path} cannot be read as a checkpoint: it is truncated, damaged or something else altogether ({reason})"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors on the CPU.

    Raises:
        InputError: a file that is missing, truncated, damaged, or no checkpoint of this project.
    """
    import torch

    require_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise InputError(_unreadable(path, first_line(error))) from error
    expected = {"format": int, "config": dict, "overrides": list, "state_dict": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), kind) for k, kind in expected.items()):
        raise InputError(f"{path} is not a checkpoint of this project: it does not say what model it belongs to")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has the format {content['format']}, but this version reads format {FORMAT}")
    try:
        content["config"] = json.loads(json.dumps(content["config"]))  # plain data, whatever it was
    except (TypeError, ValueError) as error:
        raise InputError(f"the configuration in {path} is not plain data ({first_line(error)})") from error
    return content


def load_flow(
    checkpoint: str | Path,
    weights: Weights = "raw",
    device: torch.device | str = "cpu",
    packages: Sequence[str] = ("flows",),
) -> DensityModel:
    """Load a trained flow from a checkpoint file alone.

    Args:
        checkpoint: a ``.ckpt`` file that ``train.py`` wrote; a run's folder; or ``"best"`` or ``"last"``, those of the
            newest run below ``runs/``.
        weights: ``"raw"``, or ``"averaged"`` for their exponential moving average, if the training kept one.
        device: where to put it.
        packages: top-level packages whose layers the stored configuration may build. Add your own here if your
            layers live outside of this project; that trusts the file to build any :class:`flows.Layer` of it.

    Returns:
        The flow, in eval mode.

    Raises:
        InputError: the file is missing, broken, of another program, or names a class outside of ``packages``; it holds
            no averaged weights; its weights do not fit its configuration.
    """
    path = find_checkpoint(checkpoint)
    content = read_checkpoint(path)
    flow = build_flow(content["config"], packages)
    _load_weights(flow, path, content, weights)
    return flow.to(device).eval()


def load_weights(flow: DensityModel, checkpoint: str | Path) -> None:
    """Put the raw weights of a checkpoint into a flow of another configuration.

    Raises:
        InputError: the file is missing or broken, or holds other weights than the flow has; names what does not fit.
    """
    path = find_checkpoint(checkpoint)
    _load_weights(flow, path, read_checkpoint(path), "raw")


def _load_weights(flow: DensityModel, path: Path, content: dict[str, Any], weights: Weights) -> None:
    given, own = _flow_state(path, content, weights), flow.state_dict()
    shapes = [{name: getattr(value, "shape", None) for name, value in state.items()} for state in (given, own)]
    differing = [name for name in {**own, **given} if shapes[0].get(name) != shapes[1].get(name)]
    if differing:
        raise InputError(
            f"the weights in {path} do not fit the model: {len(differing)} of {len(own)} differ in name or shape, "
            f"{', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''}"
        )
    flow.load_state_dict(given)


def model_classes() -> tuple[type, ...]:
    """What the classes derive from that a model's configuration may name."""
    from flows.layers import InvertibleMatrix, Layer
    from flows.layers.networks import Network
    from flows.models.base import DensityModel
    from flows.models.dequantizers import Dequantizer
    from flows.models.priors import Prior

    return DensityModel, Layer, InvertibleMatrix, Network, Prior, Dequantizer


def build_flow(config: dict[str, Any], packages: Sequence[str] = ("flows",)) -> DensityModel:
    """The untrained flow that a stored configuration describes; see :func:`load_flow`."""
    from flows.models.base import DensityModel

    if not isinstance(config.get("model"), dict):
        raise InputError("the stored configuration has no model")
    flow = build_trusted(config["model"], allowed=model_classes(), packages=packages)
    if not isinstance(flow, DensityModel):
        raise InputError(f"the stored configuration describes a {type(flow).__name__}, not a model")
    return flow


def _flow_state(path: Path, content: dict[str, Any], weights: Weights) -> dict[str, Any]:
    has_average = "current_model_state" in content
    if weights == "averaged" and not has_average:
        raise InputError(f"{path} holds no averaged weights: load weights=raw, or train with callbacks.averaging")
    if weights not in ("raw", "averaged"):
        raise InputError(f"weights must be 'raw' or 'averaged', not '{weights}'")
    # With an average, Lightning's callback keeps it as the state_dict and the raw weights beside it.
    state = dict(content["current_model_state" if has_average and weights == "raw" else "state_dict"])
    named = {str(name): value for name, value in state.items()}
    return {name.removeprefix(FLOW_PREFIX): value for name, value in named.items() if name.startswith(FLOW_PREFIX)}
