"""A CSV file that does not end a training."""

from __future__ import annotations

import os

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flows.notices import warn


class SteadyCSVLogger(CSVLogger):
    """Lightning's, except that a full disk or a vanished folder costs no training; the rows are written when it works.

    Arguments are Lightning's.
    """

    def __init__(self, save_dir: str, name: str = "metrics", flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @rank_zero_only
    def save(self) -> None:
        try:
            os.makedirs(self.log_dir, exist_ok=True)
            super().save()
        except OSError as error:
            warn(f"metrics are not written to {self.log_dir} for now: {error.strerror or error}")
