"""Weights & Biases, such that nothing that it does or fails to do stops or stalls a training."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from flows.errors import InputError, first_line

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online"]

PATIENCE = 10
"""Seconds that the server has, at the end of a run, to say that it is still there and takes the key."""

CLIENT_SETTINGS = {
    "WANDB_SILENT": "true",  # what matters is said here, once
    "WANDB_ERROR_REPORTING": "false",  # of the client's own errors to its makers
}
"""Environment variables of the W&B client that are set unless the user has set them."""


class WandbLogger(LightningWandbLogger):
    """A Weights & Biases run that is a help, never a hindrance.

    Offline, everything is written to ``save_dir/wandb/offline-run-*``; no account and no network is needed, and
    ``wandb sync`` uploads it at any later time. Online, it is written to ``save_dir/wandb/run-*`` all the same, and
    sent from there by a process of its own. If the server cannot be reached within ``init_timeout`` or refuses the
    key, one warning says so and the run is an offline one. If the server is lost later, the training does not notice;
    what has not arrived ``finish_timeout`` after the end is left to ``wandb sync``, and one warning says that.

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
        self._mode: Mode = mode
        self._log_checkpoint = log_model
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self._missing: str | None = None  # why something that was logged is not on the server
        self._checkpoint_command = ""

    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """The run of the W&B client, started when it is first asked for."""
        if self._experiment is None:
            for name, value in CLIENT_SETTINGS.items():
                os.environ.setdefault(name, value)
            self._experiment = self._start_online() if self._mode == "online" else self._start()
        return self._experiment  # type: ignore[return-value]

    def _start_online(self) -> wandb.Run:
        import wandb

        try:
            if not wandb.login(prompt=False, verify=False):
                raise wandb.errors.UsageError("there is no API key; `wandb login` stores one")
            return self._start()
        except (wandb.Error, TimeoutError) as error:
            wandb.teardown()  # or the client would hold on to the id of the run that it could not start
            self._mode = "offline"
            run = self._experiment = self._start()
            warnings.warn(
                f"Weights & Biases cannot be used online ({first_line(error)}), so this run is kept offline; when all "
                f"is well, upload it with: {self.sync_command}",
                stacklevel=1,
            )
            return run

    def _start(self) -> wandb.Run:
        import wandb  # takes a second, and reads the environment

        Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # or the client would choose another folder
        settings = wandb.Settings(
            init_timeout=self._init_timeout,
            finish_timeout=self._finish_timeout,
            finish_timeout_raises=True,
            reinit="create_new",
        )
        run = wandb.init(mode=self._mode, settings=settings, **self._options)
        # The client numbers the rows itself and draws them over Lightning's step, so that none is dropped when a
        # resumed run comes by a step for the second time.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        run.define_metric("val/bits_per_dim", step_metric="trainer/global_step", step_sync=True, summary="min")
        return run

    @rank_zero_only
    def log_histogram(self, name: str, histogram: tuple[np.ndarray, np.ndarray], step: int) -> None:
        """Show a histogram as numpy makes it: counts, and the edges of the bins."""
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=histogram)}, step)  # type: ignore[dict-item]

    @rank_zero_only
    def log_checkpoint(self, path: Path, metadata: Mapping[str, float]) -> None:
        """Keep a checkpoint as an artifact with the alias ``best``, if ``log_model`` asks for it."""
        import wandb

        if not self._log_checkpoint:
            return
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
        if status == "success" or self._experiment is None:
            return
        import wandb

        if self._mode == "online" and self._missing is None:
            try:
                wandb.Api(timeout=PATIENCE)  # finish() would say nothing of a key that is no longer good
            except wandb.Error as error:
                self._missing = first_line(error)
        try:
            self._experiment.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError:
            self._missing = self._missing or f"it was not uploaded within {self._finish_timeout:g} s"
        if self._missing is not None:
            warnings.warn(
                f"not all of this run has reached Weights & Biases ({self._missing}), but all of it is on the disk; "
                f"upload it with: {self.sync_command}",
                stacklevel=1,
            )

    @property
    def sync_command(self) -> str:
        """What uploads the run."""
        begun_online = ["--include-online"] if self._mode == "online" else []  # such runs are passed over otherwise
        command = shlex.join(["wandb", "sync", *begun_online, str(Path(self.experiment.dir).parent)])
        return f"{command}{self._checkpoint_command}"

    @property
    def whereabouts(self) -> str:
        """Where the run can be seen, or what uploads it so that it can be."""
        return self.experiment.url if self._mode == "online" and self._missing is None else self.sync_command
