"""Train a flow: ``python train.py [group=option ...] [key=value ...]``; ``--help`` lists what there is."""

from __future__ import annotations

if __name__ == "__main__":
    from flows import signals, threads

    signals.install()  # before the seconds that the imports take: what is not handled kills
    threads.share_the_machine()

import contextlib
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from datamodules import ImageDataModule
from flows import Flow, InputError, NonFiniteError, load_flow, signals
from flows.callbacks import LastCheckpoint, RandomStates, Rollback
from flows.checkpoint import CHECKPOINTS, FORMAT, Weights, find_checkpoint, read_checkpoint
from flows.checkpoint_io import AtomicCheckpointIO
from flows.cli import entry, processes, report, runs
from flows.cli.command_line import as_single_run
from flows.cli.matching import resolve_width
from flows.diagnostics import count_not_finite, count_parameters
from flows.evaluation import Score, bits_per_dim, codec_bits_per_dim
from flows.files import atomic_write
from flows.instantiation import build
from flows.lightning_module import FlowModule
from flows.numerics import set_matmul_precision
from flows.pictures import grid, save_png, side_by_side
from flows.randomness import Stream, generator_for
from flows.training.loggers import WandbLogger, log_checkpoint

C = TypeVar("C", bound=pl.Callback)

MAX_CODEC_IMAGES = 2000
"""The codecs are slow; of a larger test split so many images, evenly spaced, stand for all."""


NUM_SAMPLES = 1000
"""Samples at temperature 1 that are looked at in the end."""


class DescribeCheckpoint(pl.Callback):
    """Puts into every checkpoint what is needed to read it without anything else."""

    def __init__(self, config: dict[str, Any], overrides: list[str]) -> None:
        self.description = {"format": FORMAT, "config": config, "overrides": overrides}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.description)
        checkpoint["within_step"] = trainer.fit_loop.epoch_loop._should_accumulate()


def train(cfg: DictConfig) -> float:
    """One run, from its configuration to its results; returns the best validation score for a sweeper.

    Of several processes that train together each comes here, and the first one alone writes anything.
    """
    processes.end_with_whoever_started_them()
    with contextlib.ExitStack() as to_release:
        return _train(cfg, to_release)


def _train(cfg: DictConfig, to_release: contextlib.ExitStack) -> float:
    started = time.perf_counter()
    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir)
    OmegaConf.update(cfg, "run_dir", str(run_dir))
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    overrides = [str(line) for line in hydra_cfg.overrides.task if not line.startswith("resume=")]

    try:
        found = resolve_width(config)
        set_matmul_precision(config["precision"])
        runs.require_seed(config["seed"])
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        data: ImageDataModule = build(config["data"])
        data.prepare_data()
        data.setup()
        flow = build(config["model"])
        make_optimizer = build(config["optimizer"])
        runs.identify(config["logger"], run_dir if _continues(run_dir, config) else None)
        trainer = _trainer(config, overrides)
        make_schedule = partial(build(config["schedule"]), total_steps=_planned_steps(trainer, data))
        # A wrong value stops here, before the run has left anything behind.
        schedule = make_schedule(make_optimizer(flow.parameters()))
        data.require_shares(trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches)
        if processes.are_missing(trainer):
            arguments = as_single_run(
                [*hydra_cfg.overrides.task, f"run_dir={runs.quoted(run_dir)}"], hydra_cfg.overrides.hydra
            )
            return _train_in_processes(trainer.num_devices, run_dir, config, arguments)
        resumed = _take_run_folder(run_dir, config, overrides, schedule, trainer.is_global_zero, to_release)
    except Exception:
        runs.release_if_unclaimed(run_dir)
        raise

    if resumed is None:
        flow.to(trainer.strategy.root_device)
        flow.initialize(data.initialization_images(), generator_for(Stream.INITIALIZATION, config["seed"], 1))
    if trainer.is_global_zero:
        report.console.print(data.description, markup=False)
        if found is not None:
            report.console.print(found, markup=False)
        report.console.print(f"{count_parameters(flow):,} parameters; writing to {run_dir}", markup=False)
        if resumed is not None:
            report.console.print(f"goes on from {resumed}", markup=False)
    while True:
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        module = FlowModule(flow, make_optimizer, make_schedule, config["seed"])
        try:
            with processes.losses_explained(trainer), signals.deferred():
                trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
            break
        except NonFiniteError as error:
            resumed, trainer = _go_back(error, run_dir, trainer, config, overrides)

    best = _callback(trainer, ModelCheckpoint)
    score = None if best is None or best.best_model_score is None else float(best.best_model_score)
    if trainer.is_global_zero:
        last = _callback(trainer, LastCheckpoint)
        unsaved = None if last is None else last.failure
        if unsaved is None or (run_dir / CHECKPOINTS / "best.ckpt").exists():
            try:
                _conclude(run_dir, trainer, data, score, started)
            except BaseException:  # a signal too: nowhere should the run look as if it were going on
                for logger in trainer.loggers:
                    logger.finalize("failed")
                raise
        if unsaved is not None:
            raise unsaved
    return float("nan") if score is None else score


def _train_in_processes(num_processes: int, run_dir: Path, config: dict[str, Any], arguments: list[str]) -> float:
    """The same run by several processes; this one only waits for them."""
    if not _continues(run_dir, config):
        runs.require_unclaimed(run_dir)
    processes.start(arguments, num_processes)
    score = json.loads((run_dir / runs.RESULTS).read_text())["val/bits_per_dim"]
    return float("nan") if score is None else float(score)


def _continues(run_dir: Path, config: dict[str, Any]) -> bool:
    """Whether the run goes on in the folder where it was begun."""
    resume = config["resume"]
    return bool(resume == runs.AUTO or (resume and runs.run_folder_of(Path(resume)) == run_dir.resolve()))


def _take_run_folder(
    run_dir: Path,
    config: dict[str, Any],
    overrides: list[str],
    schedule: LRScheduler,
    writes: bool,
    to_release: contextlib.ExitStack,
) -> Path | None:
    """Make the run folder ours, if this is the process that writes; returns the checkpoint to resume from, if any."""
    continues = _continues(run_dir, config)
    if writes and continues:
        to_release.enter_context(runs.held(run_dir))
        runs.clear_away(run_dir)
    resumed = runs.checkpoint_to_resume(config["resume"], run_dir)
    if resumed is not None:
        runs.require_same_model(resumed, config)
        schedule.load_state_dict(read_checkpoint(resumed)["lr_schedulers"][0])  # refuses what it cannot go on with
    if writes and continues:
        runs.describe(run_dir, config, overrides)
    elif writes:
        runs.claim(run_dir, config, overrides)
        to_release.enter_context(runs.held(run_dir))
    return resumed


def _go_back(
    error: NonFiniteError, run_dir: Path, trainer: pl.Trainer, config: dict[str, Any], overrides: list[str]
) -> tuple[Path, pl.Trainer]:
    """After a training has diverged: the checkpoint to go on from, and a trainer for that; or the error again."""
    diverged = _callback(trainer, Rollback)
    if diverged is None:
        raise error
    checkpoint = diverged.checkpoint_after(error, trainer.global_step, run_dir, says_so=trainer.is_global_zero)
    trainer = _trainer(config, overrides)
    again = _callback(trainer, Rollback)
    assert again is not None  # the same configuration
    again.times = diverged.times
    return checkpoint, trainer


def _planned_steps(trainer: pl.Trainer, data: ImageDataModule) -> int | float:
    """Optimiser steps of the whole training, infinite without an end: Lightning's own estimate, before ``fit``."""
    # A batch is a whole step's as long as the data know no trainer.
    num_accumulated, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = len(data.train_dataloader()) * num_accumulated
    batches = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    steps = -(-batches // num_accumulated)
    planned = math.inf if trainer.max_epochs in (None, -1) else steps * trainer.max_epochs
    return planned if trainer.max_steps == -1 else min(planned, trainer.max_steps)


def _callback(trainer: pl.Trainer, kind: type[C]) -> C | None:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _trainer(config: dict[str, Any], overrides: list[str]) -> pl.Trainer:
    any_gpu = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if config["trainer"].get("accelerator") == "gpu" and not any_gpu:
        raise InputError("torch finds no GPU here: trainer=cpu or trainer=ddp_cpu trains without one")
    callbacks = [build(node) for node in config["callbacks"].values() if node is not None]
    loggers = [build(node) for node in config["logger"].values() if isinstance(node, dict)]
    if not loggers:
        raise InputError("no logger is left; logger.csv is what report.py reads")
    # Lightning's own way to requeue a job saves from within a signal's handler, which hangs where ranks are apart.
    by_slurm = SLURMEnvironment.detect() and not torch.distributed.is_torchelastic_launched()
    cluster = [SLURMEnvironment(auto_requeue=False)] if by_slurm else []
    trainer: pl.Trainer = build(
        {
            **config["trainer"],
            "callbacks": [*callbacks, DescribeCheckpoint(config, overrides), RandomStates()],
            "logger": loggers,
            "plugins": [AtomicCheckpointIO(), *cluster],
        },
        mistakes=(ValueError, MisconfigurationException),
    )
    if trainer.max_epochs == 0 or trainer.max_steps == 0:
        raise InputError("trainer.max_epochs and trainer.max_steps must not be 0: there would be nothing to report")
    return trainer


def _conclude(
    run_dir: Path, trainer: pl.Trainer, data: ImageDataModule, validation: float | None, started: float
) -> None:
    """Score the best checkpoint on the test split, draw samples from it, and report."""
    checkpoint = find_checkpoint(run_dir)
    kept: tuple[Weights, ...] = (
        ("raw", "averaged") if "current_model_state" in read_checkpoint(checkpoint) else ("raw",)
    )
    test = data.evaluation_batches(data.test)
    results: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": data.set_name,
        "selection_note": data.selection_note,
        "split": "test",
        "num_images": len(data.test),
        "num_noise_samples": 1,
        "num_samples": NUM_SAMPLES,
        "val/bits_per_dim": validation,
    }
    rows: list[tuple[str, Any]] = []
    unsafe: list[str] = []
    for weights in kept:
        flow = load_flow(checkpoint, weights, trainer.strategy.root_device)
        with report.progress(f"test, {weights} weights", len(data.test)) as advance:
            score = Score.of(bits_per_dim(flow, test, on_batch=advance))
        name = "test/bits_per_dim" if weights == "raw" else "test/bits_per_dim_averaged"
        results[name], results[f"{name}_standard_error"] = score.mean, score.standard_error
        rows.append((f"test bits/dim, {weights} weights", score))
        lost = count_not_finite(flow, NUM_SAMPLES)
        results["samples_not_finite" if weights == "raw" else "samples_not_finite_averaged"] = lost
        unsafe.append(f"{lost} {weights}")
    count = min(len(data.test), MAX_CODEC_IMAGES)
    images = data.test.gather([index * len(data.test) // count for index in range(count)])
    images = flow.dequantizer.reduce(images)  # the bits that the flow models, no more
    which = "the same images" if count == len(data.test) else f"{count:,} of these images"
    for codec, title in (("png", "PNG"), ("webp", "lossless WebP")):
        mean = float(codec_bits_per_dim(images, codec).mean())  # type: ignore[arg-type]
        results[f"test/{codec}_bits_per_dim"] = mean
        rows.append((f"{title} bits/dim on {which}", f"{mean:.3f}"))
    seconds = time.perf_counter() - started
    results |= {"num_parameters": count_parameters(flow), "seconds": seconds, "steps": trainer.global_step}

    picture = run_dir / runs.SAMPLES / "final.png"
    sheets = _sheets_of_samples(load_flow(checkpoint, device=trainer.strategy.root_device))
    scores = {key: value for key, value in results.items() if key.startswith("test/")}
    rows.append((f"samples that are not finite, of {NUM_SAMPLES:,} at temperature 1", ", ".join(unsafe)))
    rows += [("parameters", f"{results['num_parameters']:,}"), ("time", report.duration(seconds))]
    report.show_table("Best checkpoint on held-out images", rows)  # first of all: the disk may be full

    for logger in trainer.loggers:
        logger.log_metrics(scores, step=trainer.global_step)
        log_checkpoint(logger, checkpoint, scores)
        logger.finalize("finished")
    with atomic_write(run_dir / runs.RESULTS) as file:
        file.write(json.dumps(results, indent=2).encode())
    save_png(side_by_side(sheets), picture)
    paths = [
        ("checkpoint", checkpoint),
        ("samples", picture),
        ("results", run_dir / runs.RESULTS),
        *(("log", Path(logger.log_dir) / "metrics.csv") for logger in trainer.loggers if isinstance(logger, CSVLogger)),
    ]
    report.show_paths(paths)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            report.console.print(f"Weights & Biases: {logger.whereabouts}", markup=False)
    missing = [str(path) for _, path in paths if not path.exists()]
    if missing:
        raise InputError(f"the run finished, but {', '.join(missing)} vanished meanwhile")


def _sheets_of_samples(flow: Flow) -> dict[str, Tensor]:
    """A sheet of samples at temperature 1, and one of the same latents at temperature 0.7, by their labels."""
    sheets = {}
    for temperature in (1.0, 0.7):
        latents = flow.sample_latents(64, temperature, torch.Generator().manual_seed(0))
        images, finite = flow.decode_finite(latents)
        sheets[f"temperature {temperature:g}"] = grid(images, 8, finite)
    return sheets


if __name__ == "__main__":
    entry.run(train, "train", Path(__file__).resolve().parent / "conf")
