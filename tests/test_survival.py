"""Runs that survive: killed at any moment, told to end, or with a disk that fails."""

import json
import signal

import pytest
import torch
from support.forks import fork, output, wait
from support.short_runs import (
    SHORT,
    STEPS,
    assert_same_end,
    assert_same_state,
    final_state,
    kill_in_a_write,
    kill_while_training,
    logged_steps,
)

pytestmark = pytest.mark.slow


KILLS = [
    kill_in_a_write(0, "within"),
    kill_in_a_write(2, "before the renaming"),
    kill_while_training(3, 0.05),
    kill_in_a_write(1, "after it"),
    kill_in_a_write(2, "within"),
    kill_while_training(1, 0.2),
    kill_in_a_write(0, "before the renaming"),
    kill_in_a_write(2, "after it"),
]


def test_killed_eight_times_at_any_moment_a_run_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    """One run, or several one after the other where the machine is so fast that it ends between two kills."""
    kills, run = list(KILLS), 0
    while True:
        folder = tmp_path / str(run)
        evaluation = folder / "run/evaluations/.test.json.1.part"  # of another program, which may be running
        evaluation.parent.mkdir(parents=True, exist_ok=True)
        evaluation.touch()
        code = wait(fork([*SHORT, "run_dir=run", "resume=auto"], folder, *kills[:1]))
        if code == -signal.SIGKILL:
            kills.pop(0)
            continue
        assert code == 0, output(folder)
        assert_same_end(folder / "run", undisturbed)
        assert logged_steps(folder / "run") == list(range(STEPS))
        assert list(folder.rglob(".*.part")) == [evaluation]
        run += 1
        if not kills:
            return


@pytest.mark.parametrize("end", ["trainer.max_epochs=1", "+trainer.max_steps=6"])
def test_a_run_killed_between_its_last_two_checkpoints_ends_with_both(end, tmp_path):
    """In its last epoch it writes ``last.ckpt`` twice, ``best.ckpt`` and, had it not been killed, ``last.ckpt``."""
    arguments = [*SHORT, end, "keep_last=1", "run_dir=run", "resume=auto"]
    assert wait(fork(arguments, tmp_path, kill_in_a_write(2, "after it"))) == -signal.SIGKILL
    assert final_state(tmp_path / "run")["global_step"] == 4
    assert wait(fork(arguments, tmp_path)) == 0, output(tmp_path)
    last = final_state(tmp_path / "run")
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert [path.name for path in tmp_path.glob("run/checkpoints/step=*.ckpt")] == ["step=0000004.ckpt"]
    assert_same_state(last, best)


def test_a_run_killed_after_a_validation_within_a_step_makes_that_step_with_its_whole_gradient(tmp_path):
    """The validation has written ``best.ckpt``, in which the gradients accumulated so far are not."""
    within = ["trainer.max_epochs=1", "trainer.accumulate_grad_batches=2", "+trainer.val_check_interval=3"]
    arguments = [*SHORT, *within, "callbacks.samples=null", "resume=auto"]
    assert wait(fork([*arguments, "run_dir=undisturbed"], tmp_path)) == 0, output(tmp_path)
    killed = [*arguments, "run_dir=run"]
    assert wait(fork(killed, tmp_path, kill_in_a_write(0, "after it"))) == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("run/checkpoints/*")] == ["best.ckpt"]
    assert wait(fork(killed, tmp_path)) == 0, output(tmp_path)
    ends = (final_state(tmp_path / name) for name in ("run", "undisturbed"))
    assert_same_state(*ends, apart_from=("lr_schedulers",))


def test_a_run_whose_folder_was_moved_knows_its_best_checkpoint(tmp_path):
    arguments = [*SHORT, "trainer.max_epochs=1", "callbacks.samples=null", "resume=auto"]
    assert wait(fork([*arguments, "run_dir=run"], tmp_path)) == 0, output(tmp_path)
    best = json.loads((tmp_path / "run/results.json").read_text())["val/bits_per_dim"]
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "moved/results.json").unlink()  # else there is nothing left to do
    assert wait(fork([*arguments, "run_dir=moved"], tmp_path)) == 0, output(tmp_path)
    assert json.loads((tmp_path / "moved/results.json").read_text())["val/bits_per_dim"] == best
