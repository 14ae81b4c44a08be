"""A search is resumed, shared, and ended by nothing but its number of trials."""

import csv
import functools
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import hydra
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from support.programs import ROOT, TINY, run
from support.waiting import wait_until

from flows.errors import InputError, SweepError
from flows.sweeps.launcher import InProcess
from flows.sweeps.study import dimension_of

CONFIG = f"""
defaults:
  - override hydra/sweeper: optuna
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
x: 1.0
kind: a
run_dir: null
resume: null
hydra:
  output_subdir: null
  searchpath: [{ROOT}/conf]
  sweep: {{dir: study}}
"""

X = "x=tag(log,interval(1e-3,10))"


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Search through Hydra, in this process, as ``-m`` does."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "root.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def start(task, trials, *arguments):
        def job(cfg):
            scores = {"val/bits_per_dim": task(cfg), "test/bits_per_dim": 0.0}
            Path(cfg.run_dir, "results.json").write_text(json.dumps(scores))

        monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra.sweeper.n_trials={trials}", *arguments])
        hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name="root")(job)()

    return start


@pytest.fixture
def in_background(search):
    """The same in a process of its own, which ends with this one."""

    def start(*arguments):
        process = multiprocessing.get_context("fork").Process(target=search, args=arguments, daemon=True)
        process.start()
        return process

    return start


def trials_of(path="study/study.journal"):
    return optuna.load_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="search").trials


def finished():
    return [trial for trial in trials_of() if trial.state == TrialState.COMPLETE]


def summary():
    return list(csv.DictReader(Path("study/summary.csv").open()))


def distance(cfg):
    return abs(math.log(cfg.x))


def test_the_best_is_named_with_the_command_that_gives_it(search, capsys, tmp_path):
    search(distance, 6, X, "kind=a,b", "+unsearched=7")
    best = min(trials_of(), key=lambda trial: trial.value)
    assert len(finished()) == 6
    printed = capsys.readouterr().out
    assert f"best run: study/{best.number}\n" in printed
    assert f".py +unsearched=7 x={best.params['x']} kind={best.params['kind']}" in printed
    assert {path.name for path in (tmp_path / "study").iterdir() if path.name.isdigit()} == {str(n) for n in range(6)}


def test_the_seed_decides_the_proposals(search):
    proposals = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        search(distance, 3, X, f"hydra.sweep.dir={name}", f"hydra.sweeper.seed={seed}")
        proposals[name] = [trial.params for trial in trials_of(f"{name}/study.journal")]
    assert proposals["one"] == proposals["same"] != proposals["other"]


def test_a_failing_trial_is_recorded_and_ends_nothing(search, capsys):
    outcomes = iter([math.nan, math.inf, InputError("not like this"), ZeroDivisionError("a bug"), 1.0])

    def task(cfg):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    search(task, 5, X)
    assert [trial.state for trial in trials_of()] == [TrialState.FAIL] * 4 + [TrialState.COMPLETE]
    assert "trial 0 counts as failed: its score is nan" in capsys.readouterr().err
    reasons = ["its score is nan", "its score is inf", "not like this", "ZeroDivisionError: a bug", ""]
    assert [row["error"] for row in summary()] == reasons


def test_a_study_without_a_score_says_so(search):
    with pytest.raises(SweepError, match=r"no trial of the study search in .* gave a score"):
        search(lambda cfg: math.nan, 2, X)


def test_a_finished_study_is_only_reported_and_a_longer_one_continued(search):
    search(distance, 3, X)
    before = trials_of()
    search(distance, 3, X)
    assert trials_of() == before
    search(distance, 5, X)
    assert trials_of()[:3] == before and len(finished()) == 5
    assert [row["status"] for row in summary()] == ["done before"] * 3 + ["done"] * 2


def test_batches_go_to_the_launcher_together(search, monkeypatch):
    sizes, run_jobs = [], InProcess.run

    def counting(self, jobs):
        sizes.append((jobs[0].index, len(jobs)))
        return run_jobs(self, jobs)

    monkeypatch.setattr(InProcess, "run", counting)
    search(distance, 7, X, "hydra.sweeper.n_jobs=3")
    assert sizes == [(0, 3), (3, 3), (6, 1)]


def test_after_a_kill_exactly_the_missing_trials_are_run(search, in_background, tmp_path):
    def task(cfg, note):
        if len(finished()) == 2 and not note.exists():
            note.write_text(str(cfg.x))
            time.sleep(600)
        return distance(cfg)

    note = tmp_path / "note"
    process = in_background(functools.partial(task, note=note), 6, X)
    wait_until(note.exists)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [trial.state for trial in trials_of()] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    lost = trials_of()[2]
    search(functools.partial(task, note=note), 6, X)
    assert len(finished()) == len(trials_of()) == 6
    assert trials_of()[2].params == lost.params  # in the same folder, where the run is taken up again


def test_a_worker_that_is_killed_while_it_writes_holds_up_nobody(in_background):
    def task(cfg):
        def kill(file):
            if os.readlink(f"/proc/self/fd/{file}").endswith(".journal"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = kill
        return distance(cfg)

    for doomed, exit_code in ((task, -signal.SIGKILL), (distance, 0)):
        process = in_background(doomed, 2, X)
        process.join(600)
        assert process.exitcode == exit_code
    assert len(finished()) == 2


def test_a_worker_that_is_killed_while_it_proposes_costs_its_trial_and_holds_up_nobody(search, in_background):
    def task(cfg):
        optuna.samplers.TPESampler.sample_independent = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        return distance(cfg)

    process = in_background(task, 3, X)
    process.join(600)
    assert [one.state for one in trials_of()] == [TrialState.COMPLETE, TrialState.RUNNING]
    search(distance, 3, X)
    assert [one.state for one in trials_of()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert summary()[1]["error"] == "its worker ended while proposing it"


def test_half_a_line_in_the_journal_spoils_no_other(search, tmp_path):
    search(distance, 2, X)
    with (tmp_path / "study" / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code":6,"wor')
    search(distance, 4, X)
    assert len(finished()) == 4


def test_two_workers_share_a_study(in_background, tmp_path):
    def task(cfg):
        (tmp_path / f"worker {os.getpid()}").touch()
        wait_until(lambda: len(list(tmp_path.glob("worker *"))) == 2, 600)  # or one might run them all
        return distance(cfg)

    processes = [in_background(task, 8, X) for _ in range(2)]
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    assert len(finished()) == 8 == len({trial.params["x"] for trial in trials_of()}) == len(trials_of())
    scores = [trial.value for trial in trials_of()]
    assert [float(row["val/bits_per_dim"]) for row in summary()] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a=interval(1,2)", FloatDistribution(1, 2)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=range(2,9)", IntDistribution(2, 8)),
        ("a=range(9,2,-3)", IntDistribution(3, 9, step=3)),
        ("a=range(0.0,1.0,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=1,2.5,null", CategoricalDistribution(["1", "2.5", "null"])),
        ("a=choice([1,2],'x y')", CategoricalDistribution(["[1,2]", "x\\ y"])),
    ],
)
def test_hydras_sweeps_are_dimensions(line, expected):
    assert dimension_of(OverridesParser.create().parse_override(line)) == expected


@pytest.mark.parametrize("line", ["a=range(3,3)", "a=interval(2,1)", "a=tag(log,interval(0,1))"])
def test_what_cannot_be_searched_is_named(line):
    with pytest.raises(InputError, match=r"^'a=.* cannot be searched: "):
        dimension_of(OverridesParser.create().parse_override(line))


def test_params_of_the_configuration_are_searched_and_the_command_line_goes_before(search):
    search(distance, 2, "hydra.sweeper.params={x: 'interval(1,2)', kind: 'choice(a,b)'}", "kind=c")
    assert all(list(trial.params) == ["x"] for trial in trials_of())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to search"),
        (["hydra.sweeper.params={y: 'interval(1,2)'}"], "y"),
        (["hydra.sweeper.params={x: 'interval(1,'}"], "params cannot be read"),
        ([X, "hydra.sweeper.n_jobs=0"], "n_jobs must be at least 1"),
    ],
)
def test_mistakes_are_one_line(search, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        search(distance, 2, *arguments)
    assert "\n" not in str(caught.value)


def test_another_search_under_the_same_name_is_refused(search):
    search(distance, 1, X)
    with pytest.raises(InputError, match=r"begun with other settings .*kind=b.*study_name"):
        search(distance, 2, X, "kind=b")
    assert len(trials_of()) == 1


@pytest.mark.slow
def test_a_search_of_the_learning_rate(tmp_path):
    arguments = ["-m", "hparams_search=optuna", "hydra.sweeper.n_trials=2", "trainer.max_epochs=1", *TINY]
    done = run("train.py", *arguments, "optimizer.lr=tag(log,interval(1e-4,1e-2))", cwd=tmp_path)
    trials = trials_of(tmp_path / "runs/studies/search/study.journal")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    best = min(trials, key=lambda trial: trial.value)
    command = next(line for line in done.stdout.splitlines() if line.startswith("to train it again: python train.py "))
    assert command.endswith(f" optimizer.lr={best.params['optimizer.lr']} hydra.mode=RUN")
