"""A training of a few steps in this process, of a flow of a few hundred parameters."""

from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch.optim import Adamax

from datamodules import ImageDataModule
from datamodules.loading.datasets import Tensors
from flows import Flow
from flows.layers import AffineCoupling, EmergingConv2d, Sequential, Shuffle
from flows.training.module import FlowModule
from flows.training.schedules import WarmUp

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a trainer that writes and says nothing."""


class Stripes(Tensors):
    """Small images that a flow can learn quickly."""

    def __init__(self, num_images, seed):
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.randint(0, 64, (num_images, 1, 4, 4), generator=generator, dtype=torch.uint8))


class StripesModule(ImageDataModule):
    def __init__(self, **options):
        super().__init__(num_channels=1, image_size=4, **({"batch_size": 8, "eval_batch_size": 4} | options))

    def load_splits(self):
        return Stripes(32, 0), Stripes(10, 1), Stripes(7, 2)


class ShuffledEmerging(Sequential):
    def __init__(self, num_channels):
        super().__init__(Shuffle(num_channels), EmergingConv2d(num_channels))


def flow():
    torch.manual_seed(0)
    return Flow((1, 4, 4), ShuffledEmerging, AffineCoupling, num_levels=1, num_steps=2, hidden_channels=4)


def fit(folder, callbacks=(), model=None, data=None, ckpt_path=None, lr=1e-3, schedule=None, **options):
    """Train for two epochs unless told otherwise; returns the trainer and the module."""
    module = FlowModule(model or flow(), partial(Adamax, lr=lr), schedule or partial(WarmUp, warmup_steps=2), seed=3)
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    own = {"max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_checkpointing": saves}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **QUIET | own | options)
    trainer.fit(module, data or StripesModule(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def parameters(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
