"""A run of 48 steps, what can befall it on the way, and what it ends with."""

import csv
import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch

from support.forks import fork, output, wait

SHORT = [
    "experiment=smoke",
    "trainer=cpu",
    "trainer.deterministic=true",
    "trainer.max_epochs=8",
    "data=digits",
    "data.batch_size=8",
    "data.images_per_epoch=48",
    "callbacks.last.every_n_train_steps=2",
    "callbacks.samples.every_n_validations=8",
]
STEPS = 48


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert wait(fork([*SHORT, "run_dir=run"], folder)) == 0, output(folder)
    return folder / "run"


# -- what befalls it: each makes the function that a forked process calls before it begins -----------------------------


def at_step(number, action):
    """At its n-th training step, counted from 0, ``action(loss)`` is done; what that returns is the loss, if anything.

    The step is taken before that.
    """

    def start():
        from flows.training.module import FlowModule

        count, training_step = iter(range(1000)), FlowModule.training_step

        def counting(self, *arguments):
            loss = training_step(self, *arguments)
            changed = action(loss) if next(count) == number else None
            return loss if changed is None else changed

        FlowModule.training_step = counting

    return start


def send(*numbers, to=os.kill):
    """An action that sends this process, or its whole group, these signals."""

    def action(loss):
        for number in numbers:
            to(os.getpid(), number)

    return action


def kill_while_training(step, seconds):
    """It is killed this number of seconds after a step has begun."""
    return at_step(step, lambda loss: threading.Timer(seconds, send(signal.SIGKILL), [loss]).start())


def kill_in_a_write(write, moment):
    """It is killed in its n-th write of a checkpoint: ``within``, ``before the renaming`` or ``after it``."""

    def start():
        import flows.training.checkpoint_io
        from flows.files import atomic_write

        count = iter(range(1000))

        @contextmanager
        def killing(path):
            is_last = next(count) == write
            with atomic_write(path) as file:
                yield file
                if is_last and moment == "within":
                    file.truncate(file.tell() // 2)
                if is_last and moment != "after it":
                    os.kill(os.getpid(), signal.SIGKILL)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)

        flows.training.checkpoint_io.atomic_write = killing

    return start


# -- what it ends with -------------------------------------------------------------------------------------------------


def final_state(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def logged_steps(run_dir):
    """The steps whose training score stands in the run's metrics.csv, in its order."""
    rows = csv.DictReader((run_dir / "metrics/version_0/metrics.csv").open())
    return [int(row["step"]) for row in rows if row["train/bits_per_dim"]]


def assert_same_state(one, other, apart_from=()):
    """Two checkpoints hold the same weights, averages, optimiser and schedule."""
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        if key in one and key not in apart_from:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


def assert_same_end(run_dir, undisturbed):
    one, other = final_state(run_dir), final_state(undisturbed)
    assert one["global_step"] == other["global_step"] == STEPS
    assert_same_state(one, other)
    scores = [
        next(state["best_model_score"] for name, state in content["callbacks"].items() if "BestCheckpoint" in name)
        for content in (one, other)
    ]
    assert torch.equal(*scores)
