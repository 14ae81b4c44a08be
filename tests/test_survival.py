"""Runs that survive: killed at any moment, told to end, or with a disk that fails."""

import csv
import json
import os
import random
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from forks import fork, output, wait

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


def final_state(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def logged_steps(run_dir):
    """The steps whose training score stands in the run's metrics.csv, in its order."""
    rows = csv.DictReader((run_dir / "metrics/version_0/metrics.csv").open())
    return [int(row["step"]) for row in rows if row["train/bits_per_dim"]]


def differences(one, other, path=""):
    """The paths at which two checkpoints differ."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: {one.keys() ^ other.keys()}"]
        return [line for key in one for line in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)):
        return [
            line
            for key, pair in enumerate(zip(one, other, strict=True))
            for line in differences(*pair, f"{path}.{key}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [path]


def assert_same_end(run_dir, undisturbed):
    one, other = final_state(run_dir), final_state(undisturbed)
    assert one["global_step"] == other["global_step"] == STEPS
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert not differences(one[key], other[key], key)
    scores = [
        next(state["best_model_score"] for name, state in content["callbacks"].items() if "BestCheckpoint" in name)
        for content in (one, other)
    ]
    assert torch.equal(*scores)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert wait(fork([*SHORT, "run_dir=run"], folder)) == 0, output(folder)
    return folder / "run"


def kill_in_a_write(write, moment):
    """Make this process kill itself in its n-th write of a checkpoint: in the middle of it, or around its renaming."""
    import flows.training.checkpoint_io
    from flows.files import atomic_write

    count = iter(range(1000))

    class Half:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def killing(path):
        is_last = next(count) == write
        with atomic_write(path) as file:
            yield Half(file) if is_last and moment == "within" else file
            if is_last and moment == "before the renaming":
                os.kill(os.getpid(), signal.SIGKILL)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    flows.training.checkpoint_io.atomic_write = killing


def kill_while_training(num_steps, seconds):
    """Make this process be killed so many steps after it began to train, and a random time."""
    from flows.training.module import FlowModule

    count, training_step = iter(range(1000)), FlowModule.training_step

    def counting(*arguments):
        if next(count) == num_steps:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return training_step(*arguments)

    FlowModule.training_step = counting


def test_killed_twenty_times_at_any_moment_a_run_ends_with_the_same_weights(undisturbed, tmp_path):
    """One run, or several one after the other where the machine is so fast that it ends between two kills."""
    chosen, kills, run = random.Random(0), 0, 0
    while True:
        write, moment = chosen.randrange(3), chosen.choice(["within", "before the renaming", "after it"])
        steps, seconds = chosen.randrange(4), chosen.uniform(0, 0.2)
        plans = [lambda: kill_in_a_write(write, moment), lambda: kill_while_training(steps, seconds)]  # noqa: B023
        plan = [chosen.choice(plans)] if kills < 20 else []
        folder = tmp_path / str(run)
        folder.mkdir(exist_ok=True)
        code = wait(fork([*SHORT, "run_dir=run", "resume=auto"], folder, *plan))
        assert code in (0, -signal.SIGKILL), output(folder)
        kills += code != 0
        if code == 0:
            assert_same_end(folder / "run", undisturbed)
            assert logged_steps(folder / "run") == list(range(STEPS))
            run += 1
            if kills == 20:
                return


@pytest.mark.parametrize("end", ["trainer.max_epochs=1", "+trainer.max_steps=6"])
def test_a_run_killed_between_its_last_two_checkpoints_ends_with_both(end, tmp_path):
    """In its last epoch it writes ``last.ckpt`` twice, ``best.ckpt`` and, had it not been killed, ``last.ckpt``."""
    arguments = [*SHORT, end, "keep_last=1", "run_dir=run", "resume=auto"]
    assert wait(fork(arguments, tmp_path, lambda: kill_in_a_write(2, "after it"))) == -signal.SIGKILL
    assert final_state(tmp_path / "run")["global_step"] == 4
    assert wait(fork(arguments, tmp_path)) == 0, output(tmp_path)
    last = final_state(tmp_path / "run")
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert [path.name for path in tmp_path.glob("run/checkpoints/step=*.ckpt")] == ["step=0000004.ckpt"]
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert not differences(last[key], best[key], key)


def test_a_run_killed_just_after_a_checkpoint_logs_every_step_and_leaves_nothing_half_written(tmp_path):
    arguments = [*SHORT, "trainer.max_epochs=1", "run_dir=run", "resume=auto"]
    assert wait(fork(arguments, tmp_path, lambda: kill_in_a_write(0, "after it"))) == -signal.SIGKILL
    halves = [tmp_path / "run" / name for name in (".config.yaml.1.part", "metrics/version_0/.metrics.csv.1.part")]
    evaluation = tmp_path / "run/evaluations/.test.json.1.part"  # of another program, which may be running
    evaluation.parent.mkdir()
    for path in (*halves, evaluation):
        path.touch()
    assert wait(fork(arguments, tmp_path)) == 0, output(tmp_path)
    assert logged_steps(tmp_path / "run") == list(range(6))
    assert list(tmp_path.rglob(".*.part")) == [evaluation]


def test_a_run_killed_after_a_validation_within_a_step_makes_that_step_with_its_whole_gradient(tmp_path):
    """The validation has written ``best.ckpt``, in which the gradients accumulated so far are not."""
    within = ["trainer.max_epochs=1", "trainer.accumulate_grad_batches=2", "+trainer.val_check_interval=3"]
    arguments = [*SHORT, *within, "callbacks.samples=null", "resume=auto"]
    assert wait(fork([*arguments, "run_dir=undisturbed"], tmp_path)) == 0, output(tmp_path)
    killed = [*arguments, "run_dir=run"]
    assert wait(fork(killed, tmp_path, lambda: kill_in_a_write(0, "after it"))) == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("run/checkpoints/*")] == ["best.ckpt"]
    assert wait(fork(killed, tmp_path)) == 0, output(tmp_path)
    one, other = final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed")
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert not differences(one[key], other[key], key)


def test_a_run_whose_folder_was_moved_knows_its_best_checkpoint(tmp_path):
    arguments = [*SHORT, "trainer.max_epochs=1", "callbacks.samples=null", "resume=auto"]
    assert wait(fork([*arguments, "run_dir=run"], tmp_path)) == 0, output(tmp_path)
    best = json.loads((tmp_path / "run/results.json").read_text())["val/bits_per_dim"]
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "moved/results.json").unlink()  # else there is nothing left to do
    assert wait(fork([*arguments, "run_dir=moved"], tmp_path)) == 0, output(tmp_path)
    assert json.loads((tmp_path / "moved/results.json").read_text())["val/bits_per_dim"] == best
