"""Draw samples from a trained flow, interpolate between images, or reconstruct them.

Every mode is a list of latents to decode. What is finite is written; an image that overflows is a hatched cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from flows import InputError, NonFiniteError, console, load_flow
from flows.console import warn
from flows.files import atomic_write
from flows.models.base import DensityModel, Latents, describe_lost
from flows.models.interpolation import spherical
from flows.pictures import save_png, sheet
from flows.programs.inputs import Pictures, data_of_run, pick_device, ready, require_positive, spread
from flows.randomness import require_seed
from flows.runs.checkpoint import find_checkpoint

MAX_SCALE, MAX_COLUMNS = 64, 1000

INTERPOLATION_STEPS = 9

RECONSTRUCTION_COLUMNS = 16
"""Eight pairs."""

MAX_LETTERS = 24
"""Of a file's name beside a picture."""


@dataclass(frozen=True)
class Decoded:
    """Images, which of them are finite, and in which layer each of the others overflows."""

    images: Tensor
    finite: Tensor
    lost: dict[int, str]

    @classmethod
    def of(cls, flow: DensityModel, batches: Iterable[Latents]) -> Decoded:
        """Decode some batches of latents."""
        images: list[Tensor] = []
        lost: dict[int, str] = {}
        count = 0
        for latents in batches:
            v, lost_here = flow.decode_values(latents)
            images.append(flow.dequantizer.quantize(v).cpu())
            lost |= {count + index: layer for index, layer in lost_here.items()}
            count += len(v)
        finite = torch.tensor([index not in lost for index in range(count)])
        return cls(torch.cat(images) * finite[:, None, None, None], finite, lost)


@dataclass(frozen=True)
class Layout:
    """How images become a picture: what stands above them, how many in a row, and what stands beside each row."""

    title: str
    num_columns: int
    rows: Sequence[str] = ()


def sample(cfg: DictConfig) -> None:
    """Load, draw, write a PNG grid and an .npz with the images."""
    mode = MODES.get(cfg.mode)
    if mode is None:
        raise InputError(f"mode must be {' or '.join(MODES)}, not '{cfg.mode}'")
    require_positive(cfg, "num_samples", "batch_size")
    for key, largest in {"scale": MAX_SCALE, "columns": MAX_COLUMNS}.items():
        if not 0 <= cfg[key] <= largest:
            raise InputError(f"{key} must be between 1 and {largest}, or 0 for the usual, not {cfg[key]}")
    require_seed(cfg.seed)
    output = Path(cfg.output.removesuffix(".png").removesuffix(".npz"))
    if not output.name:
        raise InputError(f"output must name a file, not {cfg.output!r}")
    checkpoint = find_checkpoint(cfg.checkpoint)
    flow = load_flow(checkpoint, cfg.weights, pick_device(cfg.device), ("flows", *cfg.packages))
    started = time.perf_counter()
    decoded, layout = mode(flow, checkpoint, cfg)
    seconds = time.perf_counter() - started
    images, finite, lost = decoded.images, decoded.finite, decoded.lost
    if not finite.any():
        raise NonFiniteError(describe_lost(lost, len(images)))

    png, npz = output.with_name(output.name + ".png"), output.with_name(output.name + ".npz")
    num_columns = min(layout.num_columns, len(images))
    save_png(sheet(images, num_columns, finite, title=layout.title, rows=layout.rows, scale=cfg.scale), png)
    with atomic_write(npz) as file:
        lost_in = np.array([lost.get(index, "") for index in range(len(images))])
        np.savez_compressed(file, images=images.numpy(), finite=finite.numpy(), lost_in=lost_in)
    console.say(
        f"{len(images)} images in {console.duration(seconds)}: {len(images) / seconds:.1f} images/s, "
        f"{1000 * seconds / len(images):.1f} ms per image ({cfg.weights} weights, {flow.device})"
    )
    if lost:
        warn(f"{describe_lost(lost, len(images))}; they are hatched in the picture")
    console.show_paths([("checkpoint", checkpoint), ("picture", png), ("images", npz)])


def draw_samples(flow: DensityModel, checkpoint: Path, cfg: DictConfig) -> tuple[Decoded, Layout]:
    """``num_samples`` samples; the pictures depend on the seed, not on the batch size or the device."""
    if cfg.images is not None:
        raise InputError("images= belongs to mode=interpolate and mode=reconstruct")
    generator = torch.Generator().manual_seed(cfg.seed)

    def batches() -> Iterator[Latents]:
        with console.progress("sampling", cfg.num_samples) as advance:
            for start in range(0, cfg.num_samples, cfg.batch_size):
                count = min(cfg.batch_size, cfg.num_samples - start)
                yield flow.sample_latents(count, cfg.temperature, generator)
                advance(count)

    num_columns = cfg.columns or max(1, round(cfg.num_samples**0.5))
    return Decoded.of(flow, batches()), Layout(f"temperature {cfg.temperature:g}", num_columns)


@torch.no_grad()
def interpolate(flow: DensityModel, checkpoint: Path, cfg: DictConfig) -> tuple[Decoded, Layout]:
    """Rows of images on the great circle between the latents of two images; the ends are the two images."""
    names, images = _given_images(flow, checkpoint, cfg)
    if len(images) < 2 or len(images) % 2:
        raise InputError(f"mode=interpolate needs pairs of images (or an even num_samples), not {len(images)} of them")
    num_steps = cfg.columns or INTERPOLATION_STEPS
    if num_steps < 2:
        raise InputError("columns must be at least 2 in mode=interpolate: the two images are the ends of a row")
    steps = torch.linspace(0.0, 1.0, num_steps)
    rows = [f"{a} to {b}" for a, b in zip(names[::2], names[1::2], strict=True)]
    pairs = ([(level[:1], level[1:]) for level in flow.encode(two)] for two in images.split(2))
    decoded = Decoded.of(flow, (spherical(pair, steps) for pair in pairs))
    return decoded, Layout("interpolations between images", num_steps, rows)


@torch.no_grad()
def reconstruct(flow: DensityModel, checkpoint: Path, cfg: DictConfig) -> tuple[Decoded, Layout]:
    """Each image beside its ``decode(encode(image))``; says how many values differ."""
    num_columns = cfg.columns or RECONSTRUCTION_COLUMNS
    if num_columns % 2:
        raise InputError(f"columns must be even in mode=reconstruct, not {num_columns}: images stand in pairs")
    names, images = _given_images(flow, checkpoint, cfg)
    images = flow.dequantizer.reduce(images)  # the bits that the flow models
    restored = Decoded.of(flow, (flow.encode(batch) for batch in images.split(cfg.batch_size)))
    compared = images[restored.finite]
    console.say(
        f"{int((restored.images[restored.finite] != compared).sum())} of {compared.numel():,} values differ after "
        "encoding and decoding"
    )
    # Pairs side by side fill rows of any number of images without gaps.
    pairs = torch.stack([images, restored.images], dim=1).flatten(0, 1)
    finite = torch.stack([torch.ones_like(restored.finite), restored.finite], dim=1).flatten()
    decoded = Decoded(pairs, finite, {2 * index + 1: layer for index, layer in restored.lost.items()})
    in_rows = [names[start : start + num_columns // 2] for start in range(0, len(names), num_columns // 2)]
    rows = [" - ".join(dict.fromkeys([row[0], row[-1]])) for row in in_rows]
    return decoded, Layout("each image beside its reconstruction", num_columns, rows)


def _given_images(flow: DensityModel, checkpoint: Path, cfg: DictConfig) -> tuple[list[str], Tensor]:
    """The user's images, or as many of the held-out ones as the run's data has, at most ``num_samples``; named."""
    if cfg.images is not None:
        pictures = Pictures(Path(cfg.images), checkpoint, flow, cfg.value_range, packages=cfg.packages)
        paths, images = zip(*pictures.batches(cfg.batch_size), strict=True)
        pictures.tell()
        return [_shorten(path.name) for batch in paths for path in batch], torch.cat(images)
    test = ready(data_of_run(checkpoint, cfg.packages)).test
    indices = spread(len(test), min(cfg.num_samples, 16))
    return [f"test {index}" for index in indices], test.gather(indices)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 3]}..."


MODES: dict[str, Callable[[DensityModel, Path, DictConfig], tuple[Decoded, Layout]]] = {
    "sample": draw_samples,
    "interpolate": interpolate,
    "reconstruct": reconstruct,
}
