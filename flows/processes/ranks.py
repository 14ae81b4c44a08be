"""Several processes that train together: how they are launched, and what the others do when one of them is lost.

Each process runs the whole program with one device. The launcher is ``torchrun``, ``srun``, or, when the program is
started plainly, :func:`launch_ranks`, which does what ``torchrun`` does. It watches over the processes: when one ends
too early, it ends the others and names that one. What is left to do here is to keep the others from burying its message
under tracebacks of their own, and from outliving it.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from flows.errors import InputError, NonFiniteError, ProcessError, StorageError, first_line
from flows.processes import signals

if TYPE_CHECKING:
    import pytorch_lightning as pl

PATIENCE = 30.0
"""Seconds that a process which lost the connection waits for its launcher to end it and to say why."""

GRACE = 45.0
"""Seconds in which a process saves what it has when its launcher is gone."""

LAUNCHED_BY = "EMERGING_FLOWS_LAUNCHED_BY"
"""Environment variable with the number of the process that started this one, which may be gone before this one asks."""


def is_torchelastic_launched() -> bool:
    """Whether ``torchrun`` started this process; torch's own function of that name takes the seconds of its import."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_launched() -> int:
    """How many processes ``torchrun`` or ``srun`` started, this one among them; 1 if neither did."""
    if is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # inside of srun alone: a batch script has no step's number


def broadcast_from_rank_zero(word: str) -> str:
    """What the first of the processes that ``torchrun`` started says, for all of them; elsewhere ``word`` itself."""
    if not is_torchelastic_launched():
        return word
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
    if os.environ["RANK"] == "0":
        store.set("emerging-flows", word)
    return store.get("emerging-flows").decode()


def must_launch_ranks(trainer: pl.Trainer) -> bool:
    """Whether this process stands for several, one for each device, that nobody has started yet.

    Raises:
        InputError: ``torchrun`` or ``srun`` started another number than the trainer has devices, several nodes have
            nobody who could start processes there.
    """
    started, wanted = num_launched(), trainer.num_devices * trainer.num_nodes
    if started == 1 and wanted > 1 and not is_torchelastic_launched():
        if trainer.num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={trainer.num_nodes} needs processes on every node: start train.py by srun or by "
                f"torchrun there"
            )
        return True
    if started != wanted:
        raise InputError(
            f"{started} processes were started, but trainer.devices x trainer.num_nodes = {trainer.num_devices} x "
            f"{trainer.num_nodes} = {wanted}: make them equal (trainer=ddp or trainer=ddp_cpu trains with several)"
        )
    return False


def launch_ranks(arguments: list[str], num_processes: int) -> None:
    """Run this program with these arguments in a number of processes, and wait for their end.

    They train together like processes of ``torchrun``, on this machine. When one of them fails, the others are ended;
    when this process is told to end, so are they.

    Raises:
        InputError, NonFiniteError, StorageError: a process ended so; the message names it, its own says why.
        ProcessError: a process ended in another way, or was killed.
        Interrupted: a signal has ended them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the launcher tells in a page what is told below in a line
    try:
        with _as_launcher(), tempfile.TemporaryDirectory() as notes:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=num_processes,
                max_restarts=0,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                logs_specs=DefaultLogsSpecs(log_dir=notes),
            )
            elastic_launch(config, sys.executable)(os.path.abspath(sys.argv[0]), *arguments)
    except SignalException as error:
        raise signals.Interrupted(signals.EXIT_CODE) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == signals.EXIT_CODE:
            raise signals.Interrupted(signals.EXIT_CODE) from error
        kinds: dict[int, type[Exception]] = {2: InputError, 3: NonFiniteError, 4: StorageError}
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else "failed: its message stands above"
        raise kinds.get(failure.exitcode, ProcessError)(
            f"process {rank} of the {num_processes} that train together (on {socket.gethostname()}) {how}; the others "
            f"were ended"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _as_launcher() -> Iterator[None]:
    """Within, processes that are started know by whom; afterwards signals are ours again, not the launcher's."""
    before, handlers = os.environ.get(LAUNCHED_BY), {number: signal.getsignal(number) for number in signals.SIGNALS}
    os.environ[LAUNCHED_BY] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(LAUNCHED_BY)
        if before is not None:
            os.environ[LAUNCHED_BY] = before
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Let this process end when the launcher that watches over it is gone, so that nothing trains on unattended.

    It ends as if it were told to: what it has is saved. ``srun`` sees to that by itself; ``torchrun`` cannot when it is
    killed, nor can a sweep that runs its jobs in processes of their own.
    """
    started_by = os.environ.get(LAUNCHED_BY)
    if started_by or is_torchelastic_launched():
        threading.Thread(target=_end_with, args=(int(started_by or os.getppid()),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _leave() -> None:
    """Close the connection to the other processes before Python ends: its threads must not outlive what they use."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def explain_lost_connection(trainer: pl.Trainer) -> Iterator[None]:
    """Around a training: one line when the connection to the other processes is lost, or never comes about.

    Raises:
        ProcessError: it was lost. The launcher is given :data:`PATIENCE` seconds to end this one
            before, so that the one that was lost first stays the one that is named.
        InputError: the processes never met.
        Interrupted: they are being ended.
    """
    import torch.distributed

    try:
        yield
        atexit.register(_leave)
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        if not torch.distributed.is_initialized():
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(
                f"the processes that train together cannot meet at {where}: {first_line(error)}; if the port is taken, "
                f"set the environment variable MASTER_PORT to a free one"
            ) from error
        if signals.received():
            raise signals.Interrupted(signals.EXIT_CODE) from error
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        raise ProcessError(
            f"process {trainer.global_rank} of the {trainer.world_size} that train together lost the connection to "
            f"another one: the launcher's output names the one that failed first"
        ) from error
