"""Where a training spends its time: phases, layers by kind, callbacks."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import Any

import torch
from pytorch_lightning.profilers import Profiler
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from flows.layers.base import Layer
from flows.layers.composite import Composite
from flows.layers.networks import Network
from flows.models.priors import FactorOut

PHASES = {
    "run_training_epoch": "between the steps",
    "run_training_batch": "around a step",
    "optimizer_step": "optimiser",
    "training_step": "forward, the rest",
    "backward": "backward, the rest",
    "train_dataloader_next": "loading a batch",
    "validation_step": "validation",
}
"""Lightning's actions that have a row of their own, by the last part of their names."""

OPENED = ("run_training_epoch", "run_training_batch", "optimizer_step", "training_step")
"""Actions within which others are told apart; what happens within any other is counted as that."""

LEAST_SHARE = 0.005
"""Rows below this part of the whole are added up."""


class TimeTable(Profiler):
    """Prints a table after the training: where its time went, each second counted once.

    A layer's row leaves out the network inside it, which has its own; composite layers appear as their parts. On a GPU
    every row waits for the device, which makes the whole slower and the rows true.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, bool]] = []  # the actions under way, and whether others are told apart within
        self._since = 0.0
        self._hooks: list[Any] = []

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        if not self._hooks:
            self._hooks = [
                register_module_forward_pre_hook(self._enter),
                register_module_forward_hook(self._leave, always_call=True),
            ]

    def teardown(self, stage: str | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        super().teardown(stage)

    def start(self, action_name: str) -> None:
        action = action_name.rpartition(".")[2]
        callback = re.match(r"\[Callback\](\w+)", action_name)
        label = f"callback {callback[1]}" if callback else PHASES.get(action, "all else")
        self._begin(label, action in OPENED)

    def stop(self, action_name: str) -> None:
        self._count()
        self._open.pop()

    def summary(self) -> str:
        total = sum(self._seconds.values())
        shown = {label: seconds for label, seconds in self._seconds.items() if seconds >= LEAST_SHARE * total}
        rows = sorted(shown.items(), key=lambda row: -row[1])
        small = [(f"{len(self._seconds) - len(rows)} smaller ones", total - sum(shown.values()))]
        lines = [f"{label:<40}{s:>9.2f} s{s / total:>8.1%}" for label, s in [*rows, *small, ("in all", total)]]
        return "\n".join(["Where the training's time went", *lines])

    def _begin(self, label: str, is_opened: bool) -> None:
        self._count()
        self._open.append((label, is_opened) if not self._open or self._open[-1][1] else self._open[-1])

    def _count(self) -> None:
        """Count the time since the last call as that of the action under way."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1][0]] += now - self._since
        self._since = now

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        is_forward = self._is_told_apart(module)
        if is_forward or self._runs_again(module):
            outside = self._open[-1][0]
            if is_forward:
                self._begin(f"forward  {type(module).__name__}", True)
            else:
                self._go_on(f"backward {type(module).__name__}")
            if isinstance(module, Network) and args[0].requires_grad:
                args[0].register_hook(lambda gradient: self._go_on(outside.replace("forward ", "backward")))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        is_forward = self._is_told_apart(module)
        if is_forward:
            self.stop("")
        if is_forward or self._runs_again(module):
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._go_on(f"backward {type(module).__name__}"))

    def _is_told_apart(self, module: nn.Module) -> bool:
        return _has_a_row(module) and bool(self._open) and self._open[-1][1]

    def _runs_again(self, module: nn.Module) -> bool:
        """In the backward pass, for what was not kept (:mod:`flows.models.memory`)."""
        return _has_a_row(module) and bool(self._open) and self._open[-1][0].startswith("backward")

    def _go_on(self, label: str) -> None:
        """In the backward pass: what follows, until the next call, belongs to this row."""
        self._count()
        self._open[-1] = (label, False)


def _has_a_row(module: nn.Module) -> bool:
    return isinstance(module, (Layer, Network, FactorOut)) and not isinstance(module, Composite)
