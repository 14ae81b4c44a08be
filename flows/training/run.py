"""One training run, from its configuration to its results."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch.optim.lr_scheduler import LRScheduler

from datamodules import Augmentation, ImageDataModule
from flows.config.building import build, check_targets
from flows.config.matching import resolve_width
from flows.config.overrides import as_single_run, quoted
from flows.console import say, show_table
from flows.errors import InputError, NonFiniteError, one_line
from flows.measures.diagnostics import count_parameters
from flows.models.base import DensityModel
from flows.numerics import in_precision, require_precision
from flows.processes import ranks, signals
from flows.randomness import Stream, generator_for, require_seed
from flows.runs import claim, resume
from flows.runs.checkpoint import load_weights, model_classes, read_checkpoint
from flows.runs.layout import BEST, CHECKPOINTS, RESULTS, run_folder_of
from flows.training.callbacks import (
    AveragedWeights,
    BestCheckpoint,
    CostMeter,
    DescribeCheckpoint,
    LastCheckpoint,
    Rollback,
)
from flows.training.checkpoint_io import AtomicCheckpointIO
from flows.training.conclude import conclude
from flows.training.estimate import StepWatch, shortened
from flows.training.module import FlowModule
from flows.training.schedules import planned

C = TypeVar("C", bound=pl.Callback)

WITHOUT_EFFECT = {
    "callbacks": "the group callbacks says what there is",
    "logger": "the group logger says what there is",
    "plugins": "the run brings its own",
    "precision": "precision=bf16 trains with networks in half precision",
    "enable_model_summary": "the run says its number of parameters, those behind masks left out",
    "overfit_batches": "debug=overfit learns the same few images",
}
"""Keys of Lightning's trainer that are refused, with what takes their place."""


def train(cfg: DictConfig) -> float:
    """One run, from its configuration to its results; returns the best validation score for a sweeper.

    Of several processes that train together each comes here, and the first one alone writes anything.
    """
    ranks.end_with_launcher()
    given = HydraConfig.get().overrides
    if cfg.estimate:
        return estimate(cfg, list(given.task), list(given.hydra))
    with contextlib.ExitStack() as stack:  # releases the run folder in the end
        run = Run.of(cfg, Path(cfg.run_dir).absolute(), list(given.task))
        if run.is_finished():
            say(f"{run.folder} holds this run, finished: no step is left to make")
            return run.stored_score()
        if ranks.must_launch_ranks(run.trainer):
            run.train_in_ranks(list(given.task), list(given.hydra))
            return run.stored_score()
        resumed = run.take_folder(stack)
        run.announce(resumed)
        run.fit(resumed)
        return run.finish()


def estimate(cfg: DictConfig, given: list[str], hydra_overrides: list[str]) -> float:
    """Show what a run would cost, from a few of its steps, and remove all that they wrote. Returns NaN, no score.

    Raises:
        InputError: something in the configuration is wrong, or the training has no end.
    """
    OmegaConf.update(cfg, "callbacks.progress", None, force_add=True)
    cfg.logger = {name: node for name, node in cfg.logger.items() if name == "csv"}  # the others may send
    with tempfile.TemporaryDirectory() as folder:
        run = Run.of(cfg, Path(folder) / "run", given)
        if ranks.must_launch_ranks(run.trainer):
            run.train_in_ranks(given, hydra_overrides)
        else:
            run.estimate()
    return math.nan


@dataclass
class Run:
    """What a training needs, all of it checked before the run has left anything behind.

    Args:
        folder: the run's.
        config: the resolved configuration, as plain data.
        overrides: the command line, without ``resume``.
        data: ready for use.
        flow: not initialised.
        make_module: puts it together with its optimiser and schedule.
        trainer: for the first attempt; a rollback makes another one.
        remark: what is to be said about the model's width, if anything.
    """

    folder: Path
    config: dict[str, Any]
    overrides: list[str]
    data: ImageDataModule
    flow: DensityModel
    make_module: Callable[[], FlowModule]
    trainer: pl.Trainer
    remark: str | None

    @classmethod
    def of(cls, cfg: DictConfig, folder: Path, given: list[str]) -> Run:
        """Build everything that a configuration describes.

        Raises:
            InputError: something in it is wrong.
        """
        OmegaConf.update(cfg, "run_dir", str(folder))
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        overrides = [line for line in given if not line.startswith("resume=")]
        remark = resolve_width(config)
        require_precision(config["precision"])
        require_seed(config["seed"])
        _require_loadable(config)
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        data: ImageDataModule = build(config["data"])
        data.prepare_data()
        data.setup()
        flow: DensityModel = build(config["model"])
        optimizer = build(config["optimizer"])
        resume.assign_run_ids(config["logger"], folder if _continues(folder, config) else None)
        trainer = build_trainer(config, overrides)
        schedule = planned(build(config["schedule"]), planned_steps(trainer, data))
        data.require_shares(trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches)
        make_module = partial(FlowModule, flow, optimizer, schedule, config["seed"], config["parameter_groups"])
        run = cls(folder, config, overrides, data, flow, make_module, trainer, remark)
        run.schedule()  # a wrong value stops here
        return run

    def schedule(self) -> LRScheduler:
        """A schedule, to see whether one can be made, and whether it goes on with a stored one.

        Raises:
            InputError: the optimiser or the schedule refuses its settings.
        """
        try:
            schedule: LRScheduler = self.make_module().configure_optimizers()["lr_scheduler"]["scheduler"]
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"schedule: {one_line(error)}") from error
        return schedule

    def is_finished(self) -> bool:
        """Whether this very run has ended in its folder, and has no step left to make.

        Raises:
            InputError: it has other settings, which nothing would use any more.
        """
        if not (_continues(self.folder, self.config) and (self.folder / RESULTS).exists()):
            return False
        resumed = resume.checkpoint_to_resume(self.config["resume"], self.folder)
        if resumed is None:
            return False
        content = read_checkpoint(resumed)
        if content["global_step"] < planned_steps(self.trainer, self.data):
            return False
        if changed := resume.changed_settings(content["config"], self.config):
            raise InputError(
                f"{self.folder} holds a finished run with other settings ({', '.join(changed[:3])}): choose another "
                f"run_dir, or more steps than it has made"
            )
        return True

    def stored_score(self) -> float:
        """The validation score in the results of a finished run."""
        score = json.loads((self.folder / RESULTS).read_text())["val/bits_per_dim"]
        return float("nan") if score is None else float(score)

    def train_in_ranks(self, given: list[str], hydra_overrides: list[str]) -> None:
        """The same run by several processes; this one only waits for them."""
        if not _continues(self.folder, self.config):
            claim.require_unclaimed(self.folder)
        arguments = as_single_run([*given, f"run_dir={quoted(self.folder)}"], hydra_overrides)
        ranks.launch_ranks(arguments, self.trainer.num_devices)

    def take_folder(self, stack: contextlib.ExitStack) -> Path | None:
        """Make the run folder ours, if this is the process that writes; returns the checkpoint to resume, if any."""
        continues, writes = _continues(self.folder, self.config), self.trainer.is_global_zero
        if writes and continues:
            stack.enter_context(claim.run_folder_lock(self.folder))
            claim.remove_partial_files(self.folder)
        resumed = resume.checkpoint_to_resume(self.config["resume"], self.folder)
        if resumed is not None:
            resume.require_same_settings(resumed, self.config)
            self.schedule().load_state_dict(read_checkpoint(resumed)["lr_schedulers"][0])  # refuses what does not fit
        elif self.config["init"] is not None:
            load_weights(self.flow, self.config["init"])
        if writes and not continues:
            claim.require_unclaimed(self.folder)  # without a trace in it
            stack.enter_context(claim.run_folder_lock(self.folder))
            claim.require_unclaimed(self.folder)  # by one that was faster
        if writes:
            claim.write_config(self.folder, self.config, self.overrides)
        return resumed

    def fit(self, resumed: Path | None) -> None:
        """Train to the end, from the beginning or from a checkpoint, and from an earlier one after a divergence."""
        while True:
            for logger in self.trainer.loggers:
                logger.log_hyperparams(self.config)
            try:
                return self._fit_once(resumed)
            except NonFiniteError as error:
                resumed = self._go_back(error)

    def _fit_once(self, resumed: Path | None) -> None:
        if resumed is None:
            self.flow.to(self.trainer.strategy.root_device)
            images = self.data.initialization_images()
            self.flow.initialize(images, generator_for(Stream.INITIALIZATION, self.config["seed"], 1))
        if self.config["compile"]:
            self.flow.compile_parts()
        precision = in_precision(self.config["precision"], self.trainer.strategy.root_device)
        with ranks.explain_lost_connection(self.trainer), signals.deferred(), precision:
            self.trainer.fit(self.make_module(), self.data, ckpt_path=resumed, weights_only=True)

    def estimate(self) -> None:
        """Make a few steps, and show what all of them would cost."""
        complete, num_steps = self.trainer, planned_steps(self.trainer, self.data)
        config = {**self.config, "trainer": shortened(self.config["trainer"], complete)}
        self.trainer = build_trainer(config, self.overrides)
        meter = callback_of(self.trainer, CostMeter)
        assert meter is not None  # every trainer has it
        watch = StepWatch(meter.cost, complete, num_steps)
        self.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        self._fit_once(None)
        if self.trainer.is_global_zero:
            for line in filter(None, (self.data.description, self.remark)):
                say(line)
            title = f"The whole training, from {watch.num_timed} steps; without the final scores and samples"
            show_table(title, [("parameters", f"{count_parameters(self.flow):,}"), *watch.rows(self.trainer)])

    def announce(self, resumed: Path | None) -> None:
        """Say what begins, or goes on."""
        if not self.trainer.is_global_zero:
            return
        size = f"{count_parameters(self.flow):,} parameters; writing to {self.folder}"
        going_on = None if resumed is None else f"resuming from {resumed}"
        from_weights = None if self.config["init"] is None else f"starting from the weights of {self.config['init']}"
        for line in (self.data.description, self.remark, size, going_on or from_weights):
            if line is not None:
                say(line)

    def _go_back(self, error: NonFiniteError) -> Path:
        """After a training has diverged: the checkpoint to go on from, with a trainer for that; or the error again."""
        trainer = self.trainer
        diverged, spent = callback_of(trainer, Rollback), callback_of(trainer, CostMeter)
        if diverged is None:
            raise error
        checkpoint = diverged.checkpoint_after(error, trainer.global_step, self.folder, says_so=trainer.is_global_zero)
        self.trainer = build_trainer(self.config, self.overrides)
        again, meter = callback_of(self.trainer, Rollback), callback_of(self.trainer, CostMeter)
        assert again is not None and meter is not None and spent is not None  # the same configuration
        again.times, meter.cost = diverged.times, spent.cost
        return checkpoint

    def finish(self) -> float:
        """Report on the best checkpoint; returns its validation score.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        best, last = callback_of(self.trainer, BestCheckpoint), callback_of(self.trainer, LastCheckpoint)
        meter = callback_of(self.trainer, CostMeter)
        assert last is not None and meter is not None  # every trainer has them
        scores = {} if best is None else best.scores
        if self.trainer.is_global_zero:
            unsaved = last.failure
            if unsaved is None or (self.folder / CHECKPOINTS / BEST).exists():
                try:
                    conclude(self.folder, self.trainer, self.data, scores, self.config["packages"], meter.cost)
                except BaseException:  # a signal too: nowhere should the run look as if it were going on
                    for logger in self.trainer.loggers:
                        logger.finalize("failed")
                    raise
            if unsaved is not None:
                raise unsaved
        return scores.get("val/bits_per_dim", math.nan)


def _require_loadable(config: dict[str, Any]) -> None:
    """Refuse a model or data that no program could build from the run's checkpoints."""
    kinds = {"model": (model_classes(), "flows"), "data": ((ImageDataModule, Augmentation), "datamodules")}
    for part, (allowed, own) in kinds.items():
        try:
            check_targets({part: config[part]}, allowed, (own, *config["packages"]))
        except InputError as error:
            raise InputError(f"no program could read this run's checkpoints: {error}") from error


def _continues(run_dir: Path, config: dict[str, Any]) -> bool:
    """Whether the run goes on in the folder where it was begun."""
    given = config["resume"]
    return bool(given == resume.AUTO or (given and run_folder_of(Path(given)) == run_dir.resolve()))


def planned_steps(trainer: pl.Trainer, data: ImageDataModule) -> int | float:
    """Optimiser steps of the whole training, infinite without an end: Lightning's own estimate, before ``fit``."""
    # A batch is a whole step's as long as the data know no trainer.
    num_accumulated, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = len(data.train_dataloader()) * num_accumulated
    batches = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    steps = -(-batches // num_accumulated)
    planned = math.inf if trainer.max_epochs in (None, -1) else steps * trainer.max_epochs
    return planned if trainer.max_steps == -1 else min(planned, trainer.max_steps)


def callback_of(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """A trainer's callback of some kind, if it has one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def build_trainer(config: dict[str, Any], overrides: list[str]) -> pl.Trainer:
    """The trainer of a configuration, with its callbacks and loggers.

    Raises:
        InputError: it cannot be built here.
    """
    accelerator = config["trainer"].get("accelerator")
    if accelerator in ("gpu", "mps") and not CUDAAccelerator.is_available():
        raise InputError("torch finds no CUDA GPU here: trainer=cpu or trainer=ddp_cpu trains without one")
    if accelerator == "auto" and not CUDAAccelerator.is_available():
        accelerator = "cpu"
        if MPSAccelerator.is_available():
            say("training on the CPU: Apple's GPUs have no float64, in which small matrices are factorised")
    for key, instead in WITHOUT_EFFECT.items():
        if key in config["trainer"]:
            raise InputError(f"trainer.{key} would have no effect: {instead}")
    if str(strategy := config["trainer"].get("strategy")).endswith(("spawn", "fork", "notebook")):
        raise InputError(f"trainer.strategy={strategy} starts processes of its own: trainer=ddp does that here")
    callbacks = [build(node) for node in config["callbacks"].values() if node is not None]
    loggers = [build(node) for node in config["logger"].values() if isinstance(node, dict)]
    if not loggers:
        raise InputError("no logger is left; logger.csv is what report.py reads")
    # Lightning's own way to requeue a job saves from within a signal's handler, which hangs where ranks are apart.
    by_slurm = SLURMEnvironment.detect() and not torch.distributed.is_torchelastic_launched()
    cluster = [{"_target_": "pytorch_lightning.plugins.environments.SLURMEnvironment", "auto_requeue": False}]
    trainer: pl.Trainer = build(
        {
            **config["trainer"],
            "accelerator": accelerator,
            "callbacks": [*callbacks, CostMeter(), DescribeCheckpoint(config, overrides)],
            "logger": loggers,
            "plugins": [AtomicCheckpointIO(), *(cluster if by_slurm else [])],
            "enable_model_summary": False,  # its counts include masked weights
        }
    )
    if trainer.max_epochs == 0 or trainer.max_steps == 0:
        raise InputError("trainer.max_epochs and trainer.max_steps must not be 0: there would be nothing to report")
    best = callback_of(trainer, BestCheckpoint)
    if callback_of(trainer, LastCheckpoint) is None:
        raise InputError("callbacks.last cannot be left out: without it a run may end with nothing saved")
    if best is not None and best.monitor != "val/bits_per_dim" and callback_of(trainer, AveragedWeights) is None:
        raise InputError(f"callbacks.best.monitor={best.monitor} needs callbacks.averaging, which is left out")
    return trainer
