"""What a training costs: seconds on its devices, memory, and operations per image."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.console import duration, three_digits
from flows.kernels.convolution import only_torch
from flows.models.base import DensityModel

if sys.platform != "win32":
    import resource

BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024
"""Of ``ru_maxrss``, which macOS counts in bytes and Linux in KiB."""


@dataclass
class Cost:
    """What a training has cost so far, with all attempts before it was resumed or went back.

    Attributes:
        device: the name of a device.
        num_devices: how many train together, over all processes.
        seconds: wall-clock time of the training, with validations, checkpoints and pictures.
        device_seconds: the same times the number of devices that there were.
        step_seconds: the part of ``seconds`` without validations and what follows them.
        images: number of images trained on in that time, over all devices.
        peak_memory_bytes: see :func:`peak_memory`; of the first process.
        flops_per_image: see :func:`flops_per_image`; ``None`` where they could not be counted.
    """

    device: str = ""
    num_devices: int = 1
    seconds: float = 0.0
    device_seconds: float = 0.0
    step_seconds: float = 0.0
    images: int = 0
    peak_memory_bytes: int | None = None
    flops_per_image: int | None = None

    def add(self, seconds: float, are_of_steps: bool) -> None:
        """Count some more time."""
        self.seconds += seconds
        self.device_seconds += seconds * self.num_devices
        self.step_seconds += seconds * are_of_steps

    @property
    def device_hours(self) -> float:
        return self.device_seconds / 3600

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.step_seconds if self.step_seconds else None

    def as_results(self) -> dict[str, str | float | None]:
        """What ``results.json`` says of it."""
        return {
            "device": self.device,
            "num_devices": self.num_devices,
            "seconds": self.seconds,
            "device_hours": self.device_hours,
            "images_per_second": self.images_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "flops_per_image": self.flops_per_image,
        }

    def rows(self) -> list[tuple[str, str]]:
        """What a table says of it: names with their units, and figures."""
        figures = {
            "device-hours": self.device_hours,
            "images/s in training": self.images_per_second,
            "peak memory, GiB": None if self.peak_memory_bytes is None else self.peak_memory_bytes / 2**30,
            "GFLOPs per image and step": None if self.flops_per_image is None else self.flops_per_image / 1e9,
        }
        known = [(name, three_digits(value)) for name, value in figures.items() if value is not None]
        return [("device", f"{self.num_devices} x {self.device}"), ("training time", duration(self.seconds)), *known]


def peak_process_memory() -> int | None:
    """Bytes: the most memory that this process has held since its start; ``None`` on Windows, which does not say."""
    if sys.platform == "win32":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that PyTorch's tensors have held of a GPU, or this process of the machine's memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_process_memory()


def flops_per_image(flow: DensityModel) -> int:
    """Floating-point operations of a training step for one image, forward and backward.

    They are PyTorch's count (:mod:`torch.utils.flop_counter`) of matrix products and convolutions, two for each
    multiplication with its addition. Element-wise operations, Fourier transforms, decompositions and substitutions
    are not in it; what a flow computes again to save memory is. What a step does once, however many images
    it has, is left out: the count is the difference between three images and two.

    A copy of the model takes the steps, and the global generators are restored: nothing of a training changes.
    """
    flow = copy.deepcopy(flow)
    with torch.random.fork_rng([flow.device] if flow.device.type == "cuda" else []):
        return _flops(flow, 3) - _flops(flow, 2)


class _AllInOne(nullcontext[None]):
    """Counts nothing by module: the hooks for that do not bear a backward pass that computes gradients inside."""

    parents = frozenset({"Global"})


def _flops(flow: DensityModel, num_images: int) -> int:
    shape = (num_images, *flow.image_shape)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator = torch.Generator(flow.device).manual_seed(0)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _AllInOne()  # type: ignore[assignment]
    with torch.enable_grad(), only_torch(), counter:  # whose operations are those that it counts
        flow.bits_per_dim(images.to(flow.device), generator=generator).mean().backward()
    return counter.get_total_flops()
