"""Signals, a second run in a folder, disks that fail, losses that diverge: what they cost, and what they do not."""

import json
import os
import re
import shutil
import signal
import sys
import time

import pytest
import torch
from support.forks import fork, output, wait
from support.programs import ROOT, execute
from support.short_runs import SHORT, assert_same_end, at_step, final_state, send
from support.waiting import wait_until

from flows.runs import claim

pytestmark = pytest.mark.slow

AUTO = [*SHORT, "run_dir=run", "resume=auto"]


def test_interrupted_runs_end_with_the_same_weights(undisturbed, tmp_path):
    plans = [
        (at_step(2, send(signal.SIGTERM)), [], "SIGTERM"),
        (at_step(3, send(signal.SIGUSR1, to=os.killpg)), ["data.num_workers=2"], "SIGUSR1"),
        (at_step(5, send(signal.SIGTERM, to=os.killpg)), ["data.num_workers=2"], "SIGTERM"),
        (at_step(0, send(signal.SIGINT)), [], "SIGINT"),
    ]
    for number, (plan, options, name) in enumerate(plans, start=1):
        assert wait(fork([*AUTO, *options], tmp_path, plan)) == 5, output(tmp_path)
        assert output(tmp_path).count("interrupted by") == number
        assert output(tmp_path).splitlines()[-1].startswith(f"interrupted by {name}: resume=auto")
    # Steps 3, 4 and 1 after a batch each; after 6, the last batch of an epoch, the validation came first.
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3 + 4 + 6 + 1
    assert wait(fork(AUTO, tmp_path)) == 0, output(tmp_path)
    assert_same_end(tmp_path / "run", undisturbed)
    assert final_state(tmp_path / "run")["callbacks"]["CostMeter"]["images"] == 48 * 8


def test_a_program_that_cannot_go_on_promises_nothing():
    program = "import os, signal; from flows.processes import signals; signals.install(); os.kill(os.getpid(), 15)"
    assert execute(sys.executable, "-c", program, cwd=ROOT, code=5).stderr == "interrupted by SIGTERM\n"


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    assert wait(fork(AUTO, tmp_path, at_step(2, send(signal.SIGINT, signal.SIGINT)))) == -signal.SIGINT


def test_an_interruption_ends_a_sweep(tmp_path):
    sweep = ["-m", *SHORT, "run_dir=sweep", "seed=1,2"]
    assert wait(fork(sweep, tmp_path, at_step(2, send(signal.SIGTERM)))) == 5, output(tmp_path)
    assert len(list(tmp_path.glob("sweep/*/checkpoints"))) == 1
    assert "interrupted by SIGTERM: the same command continues" in output(tmp_path)
    assert wait(fork(sweep, tmp_path)) == 0, output(tmp_path)
    assert output(tmp_path).count("resuming from ") == 1


def test_signals_are_handled_before_anything_that_takes_time_is_imported(tmp_path):
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *arguments):\n"
        "        if name in ('torch', 'numpy', 'pytorch_lightning', 'hydra'):\n"
        "            os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    done = execute(sys.executable, "-c", program, cwd=tmp_path, code=5)
    assert done.stderr.startswith("interrupted by SIGUSR1"), done.stderr


def test_a_living_run_s_folder_is_refused_and_a_dead_one_s_is_resumed(undisturbed, tmp_path):
    def wait_a_second():
        claim.PATIENCE_S = 1.0

    living = fork(AUTO, tmp_path, at_step(3, lambda loss: time.sleep(1000)))
    wait_until((tmp_path / "run/checkpoints/last.ckpt").exists)
    second = tmp_path / "second"
    second.mkdir()
    assert wait(fork([*SHORT, f"run_dir={tmp_path}/run", "resume=auto"], second, wait_a_second)) == 2
    said, refused = output(second).splitlines()
    assert said.endswith("waiting for its end") and refused.startswith("error: ")
    assert f"still going (process {living.pid} on " in output(second)
    living.kill()
    living.join()
    newest = tmp_path / "run/checkpoints/last.ckpt"
    whole = newest.read_bytes()
    shutil.copy(newest, newest.with_name("step=0000002.ckpt"))
    newest.write_bytes(whole[: len(whole) // 2])  # and its disk was not well either
    assert wait(fork(AUTO, tmp_path)) == 0, output(tmp_path)
    assert f"passed over, and left as it is: {newest}" in output(tmp_path)
    assert newest.with_name("last.ckpt.damaged").read_bytes() == whole[: len(whole) // 2]
    assert_same_end(tmp_path / "run", undisturbed)


def test_a_vanished_folder_costs_the_checkpoint_and_not_the_run(undisturbed, tmp_path):
    vanish = at_step(20, lambda loss: shutil.rmtree(tmp_path / "run"))
    assert wait(fork(AUTO, tmp_path, vanish)) == 0, output(tmp_path)
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("step", "source"), [(9, "last.ckpt"), (8, "best.ckpt")])
def test_a_training_that_diverges_goes_back_beyond_its_step_and_learns_more_slowly(step, source, tmp_path):
    """Step 8 begins with the weights of ``last.ckpt``; the checkpoint before is ``best.ckpt``, of step 6."""
    nan = at_step(step, lambda loss: loss * float("nan"))
    assert wait(fork([*AUTO, "on_nan=rollback"], tmp_path, nan)) == 0, output(tmp_path)
    said = output(tmp_path)
    assert said.count("rollback ") == said.count(f"rollback 1 of 3: training stopped at step {step}") == 1
    assert re.search(rf"going on from \S*run/checkpoints/{source}", said)
    assert json.loads((tmp_path / "run/results.json").read_text())["steps"] == 48
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["callbacks"]["Rollback"] == {"times": 1}
    assert content["callbacks"]["CostMeter"]["images"] > 48 * 8  # what was lost has cost something too
    config = content["config"]["optimizer"]
    assert content["lr_schedulers"][0]["base_lrs"] == [config["lr"] / 2]
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(config["lr"] / 2)


def test_a_training_that_goes_on_diverging_ends(tmp_path):
    always = [*AUTO, "on_nan=rollback", "callbacks.rollback.max_times=2", "callbacks.finite.max_bits_per_dim=5.0"]
    assert wait(fork(always, tmp_path)) == 3, output(tmp_path)
