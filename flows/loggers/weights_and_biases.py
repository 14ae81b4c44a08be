"""Weights & Biases, such that nothing that it does or fails to do stops or stalls a training."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from flows.console import warn
from flows.errors import InputError, first_line
from flows.processes import signals

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online"]

PATIENCE = 10
"""Seconds that the server has, at the end of a run, to say that it is still there and takes the key."""

CLIENT_SETTINGS = {
    "WANDB_SILENT": "true",  # what matters is said here, once
    "WANDB_ERROR_REPORTING": "false",  # of the client's own errors to its makers
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # a run that is killed loses the last second, not the last 15
}
"""Environment variables of the W&B client that are set unless the user has set them."""


class WandbLogger(LightningWandbLogger):
    """A Weights & Biases run that is a help, never a hindrance.

    Offline, everything is written to ``save_dir/wandb/offline-run-*``; no account and no network is needed, and
    ``wandb sync`` uploads it at any later time. Online, it is written to ``save_dir/wandb/run-*`` all the same, and
    sent from there by a process of its own. If the server cannot be reached within ``init_timeout`` or refuses the
    key, one warning says so and the run is an offline one. If the server is lost later, the training does not notice;
    what has not arrived ``finish_timeout`` after the end is left to ``wandb sync``, and one warning says that. If the
    process itself is lost, the run goes on offline; if that fails too, since nothing can be written, without W&B.

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
        log_model: keep the best checkpoint as an artifact.
        init_timeout: seconds after which an online run that has not started becomes an offline one.
        finish_timeout: seconds after which the end of a run no longer waits for its upload.
    """

    def __init__(
        self,
        save_dir: str,
        mode: Mode = "offline",
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
        if mode not in ("offline", "online"):
            raise InputError(f"logger.mode must be offline or online, not {mode!r}")
        if init_timeout <= 0 or finish_timeout <= 0:  # to the client, 0 is for ever
            raise InputError("logger.init_timeout and logger.finish_timeout must be positive")
        folder = Path(save_dir).resolve()
        is_job = (folder.parent / "multirun.yaml").is_file()  # which Hydra puts into a sweep's folder first of all
        self._options: dict[str, Any] = {
            "dir": save_dir,
            "project": project,
            "entity": entity,
            "name": name or folder.name,
            "group": group or (folder.parent.name if is_job else None),
            "tags": list(tags),
            "job_type": job_type,
            "id": id,
            "resume": "allow",
        }
        super().__init__(save_dir=save_dir, project=project, id=id)
        self._mode: Mode | Literal["disabled"] = mode
        # What comes after a failure, each once; an offline run whose client is lost has an offline successor.
        self._retreats: list[Mode | Literal["disabled"]] = ["offline", "disabled"]
        if mode == "online":
            self._retreats.insert(0, "offline")
        self._params: Any = None
        self._is_over = False
        self._log_checkpoint = log_model
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self._missing: str | None = None  # why something that was logged is not on the server
        self._unsent: list[Path] = []  # what was begun online and could not be sent to its end
        self._checkpoint_command = ""

    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """The run of the W&B client, started when it is first asked for."""
        while self._experiment is None:
            try:
                self._experiment = self._start()
            except Exception as error:
                self._retreat(error)
        return self._experiment  # type: ignore[return-value]

    def _start(self) -> wandb.Run:
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        import wandb  # takes a second, and reads the environment

        if self._mode == "online" and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("there is no API key; `wandb login` stores one")
        if self._mode != "disabled":
            Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # or the client would choose another folder
        online: dict[str, Any] = {"init_timeout": self._init_timeout}  # where no server is asked, none can be slow
        settings = wandb.Settings(
            **(online if self._mode == "online" else {}),
            finish_timeout=self._finish_timeout,
            finish_timeout_raises=True,
            reinit="create_new",
        )
        run = wandb.init(mode=self._mode, settings=settings, **self._options)
        self._options["id"] = run.id
        # The client numbers the rows itself and draws them over Lightning's step, so that none is dropped when a
        # resumed run comes by a step for the second time.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        run.define_metric("val/bits_per_dim", step_metric="trainer/global_step", step_sync=True, summary="min")
        return run

    def _retreat(self, error: Exception) -> None:
        """Give up the run as it is, and go on in a new part of it: offline or, if that has failed too, without W&B."""
        if not self._retreats:
            raise error  # nobody was asked: the mistake is ours
        import wandb

        if self._mode == "online" and self._experiment is not None:
            self._unsent.append(Path(self._experiment.dir).parent)
        with contextlib.suppress(Exception):
            wandb.teardown()  # or the client would hold on to the id of the run
        mode = self._mode = self._retreats.pop(0)
        self._experiment = None
        if self._params is not None:
            self.log_hyperparams(self._params)
        remedy = f"this run is kept offline; when all is well, upload it with: {self.sync_command}"
        if mode == "disabled":
            remedy = "what follows of this run is not logged there"
        if mode == self._mode:  # the new part has begun; if it has not, that was said
            warn(f"Weights & Biases failed ({first_line(error)}), so {remedy}")

    def _tell(self, message: Callable[[], None]) -> None:
        """Tell the run something; if its client fails, tell its successor."""
        while True:
            try:
                return message()
            except Exception as error:
                self._retreat(error)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self._params = params
        self._tell(partial(super().log_hyperparams, params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tell(partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        self._tell(partial(super().log_image, key, images, step, **options))

    @rank_zero_only
    def log_histogram(self, name: str, histogram: tuple[np.ndarray, np.ndarray], step: int) -> None:
        """Show a histogram as numpy makes it: counts, and the edges of the bins."""
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=histogram)}, step)  # type: ignore[dict-item]

    @rank_zero_only
    def log_checkpoint(self, path: Path, metadata: Mapping[str, float]) -> None:
        """Keep a checkpoint as an artifact with the alias ``best``, if ``log_model`` asks for it."""
        if self._log_checkpoint:
            self._tell(partial(self._log_artifact, path, metadata))

    def _log_artifact(self, path: Path, metadata: Mapping[str, float]) -> None:
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self.experiment.id}", type="model", metadata=dict(metadata))
        artifact.add_file(str(path), policy="immutable")  # not copied to the user's cache first
        try:
            self.experiment.log_artifact(artifact, aliases=["best"])
        except wandb.Error as error:  # unlike all else that is logged, an artifact is announced to the server at once
            self._missing = first_line(error)
            name = f"{self._options['project']}/{artifact.name}"
            command = ["wandb", "artifact", "put", "--type", "model", "--alias", "best", "--name", name, str(path)]
            self._checkpoint_command = f" && {shlex.join(command)}"

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run, unless ``status`` is ``success``: Lightning's fitting is done, but scores may follow it."""
        if status == "success" or self._experiment is None or self._is_over:
            return
        import wandb

        if self._mode == "online" and self._missing is None:
            try:
                wandb.Api(timeout=PATIENCE)  # finish() would say nothing of a key that is no longer good
            except wandb.Error as error:
                self._missing = first_line(error)
        self._tell(partial(self._finish, status))
        self._is_over = True
        if self._missing is not None:
            self._unsent.append(Path(self.experiment.dir).parent)
            warn(
                f"not all of this run has reached Weights & Biases ({self._missing}), but all of it is on the disk; "
                f"upload it with: {self.sync_command}"
            )

    def _finish(self, status: str) -> None:
        exit_code = 0 if status == "finished" else 1
        if isinstance(sys.exception(), signals.Interrupted):
            exit_code = signals.EXIT_CODE
            self.experiment.mark_preempting()
        try:
            self.experiment.finish(exit_code=exit_code)
        except TimeoutError:
            self._missing = self._missing or f"it was not uploaded within {self._finish_timeout:g} s"

    @property
    def sync_command(self) -> str:
        """What uploads the run: all its parts that the server lacks, those before an interruption too."""
        begun_online = ["--include-online"] if self._unsent else []  # such parts are passed over otherwise
        return shlex.join(["wandb", "sync", *begun_online, *map(str, self._parts)]) + self._checkpoint_command

    @property
    def _parts(self) -> list[Path]:
        """Folders of the run that the server lacks, oldest first but for those that were begun online."""
        offline = Path(str(self.save_dir)).resolve().glob(f"wandb/offline-run-*-{self.experiment.id}")
        return [*self._unsent, *(part for part in sorted(offline) if not list(part.glob("*.synced")))]

    @property
    def whereabouts(self) -> str:
        """Where the run can be seen, or what uploads it so that it can be."""
        if self._mode == "online" and self._missing is None:
            return self.experiment.url
        return self.sync_command if self._parts else "nothing of this run was kept"
