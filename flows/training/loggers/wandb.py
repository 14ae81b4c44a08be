"""Weights & Biases, such that neither its client nor its server stops or stalls a training."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from flows.console import say, warn
from flows.errors import InputError, first_line
from flows.home import remedy_without
from flows.processes import signals
from flows.runs.layout import BEST, CHECKPOINTS

if TYPE_CHECKING:
    import wandb

STEP = "trainer/global_step"
"""Lightning's name for the optimiser step, over which W&B draws everything."""


class WandbLogger(Logger):
    """A Weights & Biases run.

    Offline, everything is written to ``save_dir/wandb/offline-run-*``; no account and no network is needed, and
    ``wandb sync`` uploads it at any later time. Online, it is written to ``save_dir/wandb/run-*`` all the same, and
    the client sends it from there in a process of its own. If the run cannot start online within ``init_timeout``, it
    is an offline run. If the server is lost later, the training does not notice; the end of the run waits for
    the upload no longer than ``finish_timeout``. If the client itself fails, W&B is told nothing more. Whatever fails,
    one warning says so, with the command that uploads what is on the disk.

    A run that a signal ends is marked as preempted, one that ends with an error as failed.

    Args:
        save_dir: the run's folder.
        mode: ``offline`` or ``online``.
        project: of W&B, made there if need be.
        entity: user or team; ``None`` is the account's default.
        name: of the run; ``None`` is the name of its folder.
        group: runs that belong together; ``None`` is the name of the sweep's folder if the run is a job of a sweep.
        tags: to find runs by.
        job_type: distinguishes kinds of runs in a group.
        id: of the run. A run with the same id is continued.
        log_model: keep the best checkpoint as an artifact with the alias ``best``, once, when the run has finished.
        init_timeout: seconds after which an online run that has not started becomes an offline one.
        finish_timeout: seconds after which the end of a run no longer waits for its upload.
    """

    def __init__(
        self,
        save_dir: str,
        mode: Literal["offline", "online"] = "offline",
        project: str = "emerging-flows",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str | None = None,
        id: str | None = None,
        log_model: bool = True,
        init_timeout: float = 20.0,
        finish_timeout: float = 120.0,
    ) -> None:
        if init_timeout <= 0 or finish_timeout <= 0:  # to the client, 0 is for ever
            raise InputError("logger.init_timeout and logger.finish_timeout must be positive")
        if find_spec("wandb") is None:  # said before the run has left anything behind
            raise InputError(f"this Python has no wandb; {remedy_without('wandb')}")
        super().__init__()
        self._folder = Path(save_dir).resolve()
        is_job = (self._folder.parent / "multirun.yaml").is_file()  # Hydra writes it before a sweep's first job
        self._options: dict[str, Any] = {
            "dir": save_dir,
            "project": project,
            "entity": entity,
            "name": name or self._folder.name,
            "group": group or (self._folder.parent.name if is_job else None),
            "tags": list(tags),
            "job_type": job_type,
            "id": id,
            "resume": "allow",
        }
        self._mode = mode
        self._log_checkpoint = log_model
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self._run: wandb.Run | None = None
        self._has_failed = self._is_over = False

    @property
    def name(self) -> str:
        return str(self._options["project"])

    @property
    def version(self) -> str | None:
        return self._options["id"]

    @property
    def run(self) -> wandb.Run:
        """The run of the W&B client, started when it is first asked for."""
        if self._run is None:
            try:
                self._run = self._start()
            except Exception as error:
                if self._mode == "offline":
                    raise
                self._drop_client()  # it holds on to the id of the run
                self._mode = "offline"
                self._run = self._start()
                self._warn(error)
        return self._run

    def _start(self) -> wandb.Run:
        os.environ.setdefault("WANDB_SILENT", "true")  # what matters is said here, once
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of the client's own errors to its makers
        import wandb  # takes a second, and reads the environment

        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("there is no API key; `wandb login` stores one")
        self._folder.mkdir(parents=True, exist_ok=True)  # or the client would choose another folder
        online: dict[str, Any] = {"init_timeout": self._init_timeout}  # where no server is asked, none can be slow
        settings = wandb.Settings(
            **(online if self._mode == "online" else {}),
            finish_timeout=self._finish_timeout,
            finish_timeout_raises=True,
            reinit="create_new",
        )
        run = wandb.init(mode=self._mode, settings=settings, **self._options)
        self._options["id"] = run.id
        # The client numbers the rows itself and draws them over the step, so that none is dropped when a
        # resumed run comes by a step for the second time.
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        run.define_metric("val/bits_per_dim", step_metric=STEP, step_sync=True, summary="min")
        return run

    def _drop_client(self) -> None:
        """End the client's process; do not wait for one that hangs."""
        import wandb

        def teardown() -> None:
            with suppress(Exception):  # the failure that led here has been told
                wandb.teardown()

        thread = threading.Thread(target=teardown, daemon=True)
        thread.start()
        thread.join(self._init_timeout)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if not self._has_failed:
                self._warn(error)
            self._has_failed = True

    def _warn(self, error: Exception) -> None:
        remedy = "" if self._run is None else f"; upload what there is of this run with: {self.sync_command}"
        warn(f"Weights & Biases failed ({first_line(error)}){remedy}")

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        if not self._has_failed:
            self._attempt(lambda: self.run.log({**values, STEP: step}))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        if not self._has_failed:
            self._attempt(lambda: self.run.config.update(params, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int, caption: list[str]) -> None:
        """Show images, each under its caption, as Lightning's own logger for W&B does."""
        import wandb

        pairs = zip(images, caption, strict=True)
        self._log({key: [wandb.Image(image, caption=text) for image, text in pairs]}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run, unless ``status`` is ``success``: Lightning's fitting is done, but scores may follow it."""
        if status != "success" and self._run is not None and not self._is_over:
            self._is_over = True
            self._attempt(lambda: self._finish(status))
            if self._has_failed:
                self._drop_client()  # it would end the program with a traceback
            if status == "finished":
                say(f"Weights & Biases: {self.whereabouts}")

    def _finish(self, status: str) -> None:
        import wandb

        exit_code = 0 if status == "finished" else 1
        best = self._folder / CHECKPOINTS / BEST
        if self._log_checkpoint and status == "finished" and best.exists():
            artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model")
            artifact.add_file(str(best), policy="immutable")  # not copied to the user's cache first
            self.run.log_artifact(artifact, aliases=["best"])
        if isinstance(sys.exception(), signals.Interrupted):
            exit_code = signals.EXIT_CODE
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)  # raises TimeoutError if the upload takes too long

    @property
    def sync_command(self) -> str:
        """What uploads the run: the part that has just been written, and those from before an interruption."""
        parts = {Path(self.run.dir).parent}
        for part in self._folder.glob(f"wandb/offline-run-*-{self.run.id}"):
            if not list(part.glob("*.synced")):
                parts.add(part)
        begun_online = ["--include-online"] if self._mode == "online" else []  # such parts are passed over otherwise
        return shlex.join(["wandb", "sync", *begun_online, *map(str, sorted(parts))])

    @property
    def whereabouts(self) -> str:
        """Where the run can be seen, or what uploads it so that it can be."""
        return self.run.url or "" if self._mode == "online" and not self._has_failed else self.sync_command
