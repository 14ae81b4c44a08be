"""The flow as Lightning sees it. No mathematics here: what is computed is in :mod:`flows.models`."""

from __future__ import annotations

from typing import Any, Literal, NoReturn, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from flows.errors import InputError
from flows.measures.diagnostics import gradient_norm
from flows.models.base import DensityModel
from flows.numerics import scoring
from flows.randomness import Stream, draw_noise, evaluation_noise, generator_for
from flows.training.optimizers import Groups, OptimizerFactory, make_optimizer
from flows.training.schedules import ScheduleFactory

Batch = tuple[Tensor, Tensor]
"""Images (uint8, ``(B, C, H, W)``) and their indices in the split (int64, ``(B,)``)."""


class FlowModule(pl.LightningModule):
    """Trains a :class:`flows.models.base.DensityModel` by maximum likelihood.

    Logs ``train/bits_per_dim`` and ``train/gradient_norm`` at every step, ``val/bits_per_dim`` at every validation.
    A step's batch is spread over the devices and over the batches that each of them accumulates. Its noise depends on
    the seed, the step and an image's place in it, its logged score is the mean over all of it: neither depends on how
    it is spread. Evaluation noise depends on the index of the image.

    Args:
        flow: the model.
        optimizer: makes the optimiser from the parameters.
        schedule: makes the per-step schedule of its rate.
        seed: of the dequantisation noise in training, at least 0.
        groups: of parameters with settings of their own (:func:`flows.training.optimizers.make_optimizer`).
    """

    def __init__(
        self,
        flow: DensityModel,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        seed: int = 0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.optimizer_factory, self.schedule_factory, self.groups = optimizer, schedule, groups
        self.seed = seed
        self._step_losses: list[Tensor] = []
        # Lightning's own mean over ranks rounds their numbers of images; torchmetrics sums values and counts.
        self.validation_scores = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in ("raw", "averaged")}
        )

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.flow, self.optimizer_factory, self.groups)
        scheduler = self.schedule_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, _ = batch
        loss = self.flow.bits_per_dim(images, self.training_noise(images, batch_idx)).mean()
        part, num_parts = self._part_of_step(batch_idx)
        self._step_losses = [*(self._step_losses if part else []), loss.detach()]
        if part == num_parts - 1:
            mean = torch.stack(self._step_losses).mean()
            self.log("train/bits_per_dim", mean, prog_bar=True, batch_size=len(images), sync_dist=True)
        return loss

    def training_noise(self, images: Tensor, batch_idx: int) -> Tensor:
        """The dequantisation noise of a training batch: the same whenever it is asked for.

        It is drawn for the step's whole batch, dealt out over the ranks as its images are
        (:class:`datamodules.loading.samplers.EpochSampler`).
        """
        part, num_parts = self._part_of_step(batch_idx)
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size
        counters = self.seed, self.current_epoch, batch_idx // num_parts, 0
        generator = generator_for(Stream.TRAINING_NOISE, *counters, device=images.device)
        shape = (len(images) * num_parts * num_ranks, *images.shape[1:])
        kind = self.flow.dequantizer.noise
        noise = draw_noise(kind, shape, generator, device=images.device, dtype=self.flow.dtype)
        return noise[rank::num_ranks][part * len(images) : (part + 1) * len(images)]

    def _part_of_step(self, batch_idx: int) -> tuple[int, int]:
        """Which of a step's accumulated batches this is, and how many there are."""
        num_parts = self.trainer.accumulate_grad_batches
        return batch_idx % num_parts, num_parts

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.log("train/gradient_norm", gradient_norm(gradients))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.score("val/bits_per_dim", "raw", batch)

    def score(self, name: str, weights: Literal["raw", "averaged"], batch: Batch) -> None:
        """Log the mean bits/dim of the present weights over a validation, as ``name``."""
        mean = cast(MeanMetric, self.validation_scores[weights])
        mean.update(self.bits_per_dim(batch))
        self.log(name, mean, prog_bar=weights == "raw", batch_size=len(batch[0]), on_step=False, on_epoch=True)

    def bits_per_dim(self, batch: Batch) -> Tensor:
        """Bits/dim of the images of an evaluation batch, with each image's own noise; exact whatever is chosen."""
        images, indices = batch
        noise = evaluation_noise(self.flow.dequantizer.noise, indices, self.flow.image_shape)
        with scoring("exact", self.device):
            return self.flow.bits_per_dim(images, noise.to(self.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the raw weights where no average is kept any more; else its callback restores both."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, WeightAveraging) for callback in callbacks):
            checkpoint["state_dict"] = checkpoint.get("current_model_state", checkpoint["state_dict"])

    @classmethod
    def load_from_checkpoint(cls, *arguments: Any, **options: Any) -> NoReturn:
        """Not for this project: a checkpoint describes its own flow.

        Raises:
            InputError: always.
        """
        raise InputError("flows.load_flow(path) loads the flow of a checkpoint; train.py resume= continues a training")
