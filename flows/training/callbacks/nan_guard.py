"""Stop at the first number that is not finite, or a loss beyond all reason, and say where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from flows.errors import InputError, NonFiniteError
from flows.layers.base import Layer
from flows.layers.composite import Composite
from flows.measures.diagnostics import first_non_finite, gradient_norm
from flows.models.priors import FactorOut
from flows.runs.checkpoint import newest_good
from flows.training.module import FlowModule


class StopOnNonFinite(pl.Callback):
    """Stops a training whose loss diverges, or whose loss or gradient becomes NaN, before the weights take harm.

    The message names the step, the layer or parameter where it was first seen, and the last good checkpoint. All ranks
    stop, whichever has seen it.

    Args:
        max_bits_per_dim: a training loss above this has diverged.

    Raises:
        NonFiniteError: from the training step in question.
    """

    def __init__(self, max_bits_per_dim: float = 1000.0) -> None:
        if not max_bits_per_dim > 0:
            raise InputError(f"callbacks.finite.max_bits_per_dim must be positive, not {max_bits_per_dim}")
        self.max_bits_per_dim = max_bits_per_dim
        self._batch: tuple[Tensor, int] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: FlowModule, batch: Any, batch_idx: int) -> None:
        images, _ = batch
        self._batch = (images, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: FlowModule, loss: Tensor) -> None:
        is_ours = not loss.item() <= self.max_bits_per_dim  # a NaN is not less than anything either
        if trainer.strategy.reduce_boolean_decision(is_ours, all=False):
            if not is_ours:
                raise NonFiniteError(self._message(trainer, "the loss is not finite", "another process"))
            assert self._batch is not None
            images, batch_idx = self._batch
            flow, noise = pl_module.flow, pl_module.training_noise(images, batch_idx)
            where = first_non_finite(flow, flow.dequantizer(images, noise)[0])
            raise NonFiniteError(self._message(trainer, f"the loss is {loss.item()}", where))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        named = [(name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        if not torch.isfinite(gradient_norm([gradient for _, gradient in named])):
            where = next(name for name, gradient in named if not torch.isfinite(gradient).all())
            raise NonFiniteError(self._message(trainer, "the gradient is not finite", f"parameter {where}"))

    @staticmethod
    def _message(trainer: pl.Trainer, what: str, where: str) -> str:
        folders = filter(None, (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks))
        saved = next((newest_good(Path(folder), trainer.global_step) for folder in folders), None)
        remedy = f"the last good checkpoint is {saved}" if saved else "there is no good checkpoint yet"
        return (
            f"training stopped at step {trainer.global_step} (epoch {trainer.current_epoch}): {what}; first seen in "
            f"{where}; {remedy}; a lower optimizer.lr or a longer schedule.warmup_steps usually helps"
        )


class StopAtLayer(StopOnNonFinite):
    """Looks besides at the gradient before each layer, and names the layer in whose backward pass it first breaks.

    For debugging: a look at every gradient takes time, and on a GPU waits for it.
    """

    def __init__(self, max_bits_per_dim: float = 1000.0) -> None:
        super().__init__(max_bits_per_dim)
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        def watch(name: str, inputs: tuple[Any, ...]) -> None:
            def look(gradient: Tensor) -> None:
                if not torch.isfinite(gradient).all():
                    where = f"the backward pass of layer {name}"
                    raise NonFiniteError(self._message(trainer, "the gradient is not finite", where))

            if inputs[0].requires_grad:
                inputs[0].register_hook(look)

        if getattr(pl_module.flow, "memory", "store") == "invert":
            pl_module.flow.memory = "recompute"  # type: ignore[assignment]  # which calls every layer under autograd

        # A gradient comes to the layers from the last to the first, and to the parts of one as to layers.
        for name, module in pl_module.named_modules():
            if isinstance(module, (Layer, FactorOut)) and not isinstance(module, Composite):
                self._hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs)))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._hooks:
            self._hooks.pop().remove()
