"""Runs that go on with other settings or start from others' weights, and what is refused before the first step."""

import csv
import json
import shutil

import pytest
import torch
import yaml
from support.configs import compose
from support.forks import fork, output, wait

from flows import InputError, load_flow
from flows.training.module import FlowModule

pytestmark = pytest.mark.slow

TINY = ["experiment=smoke", "data=digits", "trainer=cpu", "callbacks.samples=null", "callbacks.inversion=null"]


def train(folder, *arguments, code=0):
    """What a run in that folder prints."""
    said = output(folder) if (folder / "out.txt").exists() else ""
    assert wait(fork([*TINY, *arguments], folder)) == code, output(folder)
    return output(folder).removeprefix(said)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder above a finished run of one epoch, selected by its averaged weights."""
    folder = tmp_path_factory.mktemp("ended")
    by_average = "callbacks.best.monitor=val/bits_per_dim_averaged"
    train(folder, "run_dir=run", "trainer.max_epochs=1", "optimizer.lr=0.1", by_average)
    return folder


@pytest.fixture
def folder(ended, tmp_path):
    """The same, to be changed."""
    shutil.copytree(ended / "run", tmp_path / "run")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_scores_have_their_own_names_whatever_selects(ended):
    """The run has one validation, whose scores stand in its metrics."""
    results = json.loads((ended / "run/results.json").read_text())
    with (ended / "run/metrics/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("val/bits_per_dim", "val/bits_per_dim_averaged"):
        (logged,) = [row[name] for row in rows if row[name]]
        assert results[name] == pytest.approx(float(logged))
    assert results["val/bits_per_dim"] != results["val/bits_per_dim_averaged"]


def test_a_finished_run_keeps_its_settings_and_its_results(folder):
    before = contents(folder / "run")
    same = ["run_dir=run", "resume=auto", "optimizer.lr=0.1", "callbacks.best.monitor=val/bits_per_dim_averaged"]
    assert "finished: no step is left" in train(folder, *same, "trainer.max_epochs=1")
    for other in ("optimizer.lr=1.0", "callbacks.averaging.decay=0.5"):
        refusal = train(folder, *same, "trainer.max_epochs=1", other, code=2)
        assert f"finished run with other settings ({other.split('=')[0]})" in refusal
    assert "optimizer.lr would change" in train(folder, "resume=run", "trainer.max_epochs=2", "optimizer.lr=1", code=2)
    assert contents(folder / "run") == before


def test_a_run_goes_on_from_its_raw_weights_where_the_average_is_left_out(folder):
    last = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)

    def look():
        from flows.training.module import FlowModule

        FlowModule.on_train_start = lambda module: torch.save(module.state_dict(), folder / "held.pt")

    arguments = [*TINY, "resume=run", "trainer.max_epochs=2", "callbacks.averaging=null", "callbacks.best=null"]
    assert wait(fork(arguments, folder, look)) == 0, output(folder)
    held = torch.load(folder / "held.pt", weights_only=True)
    raw = last["current_model_state"]
    assert held.keys() == raw.keys() and all(torch.equal(held[name], raw[name]) for name in raw)
    after = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == 4 and "current_model_state" not in after
    assert after["config"]["trainer"]["max_epochs"] == 2


def test_a_run_starts_from_the_weights_of_another(folder):
    assert "do not fit the model" in train(folder, "init=run", "run_dir=new", "model.hidden_channels=16", code=2)
    assert not (folder / "new").exists()
    still = ["optimizer.lr=0.0", "trainer.max_epochs=1", "schedule=constant", "callbacks.averaging=null"]
    assert "starting from the weights of run" in train(folder, "init=run", "run_dir=new", "seed=3", *still)
    given, kept = (load_flow(folder / name).state_dict() for name in ("run", "new"))
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert yaml.safe_load((folder / "new/config.yaml").read_text())["init"] == "run"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("callbacks.best.save_top_k=2", "callbacks.best.save_top_k"),
        ("callbacks.best.monitor=val/typo", "callbacks.best.monitor must be"),
        ("callbacks.last=null", "callbacks.last cannot be left out"),
        ("+trainer.precision=bf16-mixed", "precision=bf16 trains"),
        ("trainer.accelerator=mps", "no CUDA GPU"),
        ("packages=mine", "packages"),
    ],
)
def test_what_would_spoil_the_end_is_refused_at_the_start(tmp_path, setting, words):
    refusal = train(tmp_path, setting, "run_dir=run", code=2)
    assert words in refusal and len(refusal.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_average_that_is_not_kept_selects_nothing(tmp_path):
    monitor = ["callbacks.best.monitor=val/bits_per_dim_averaged", "run_dir=run"]
    assert "needs callbacks.averaging" in train(tmp_path, *monitor, "callbacks.averaging=null", code=2)
    train(tmp_path, *monitor, "+callbacks.averaging.start_step=100", "trainer.max_epochs=1")
    assert json.loads((tmp_path / "run/results.json").read_text())["val/bits_per_dim"] is None


def test_a_layer_from_a_module_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "mixing").mkdir()
    (tmp_path / "mixing" / "mine.yaml").write_text("_target_: my_module_of_layers.Mine\n_partial_: true\n")
    (tmp_path / "my_module_of_layers.py").write_text("from flows.layers import Shuffle\nclass Mine(Shuffle): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["mixing=mine", f"hydra.searchpath=[{tmp_path}]", "trainer.max_epochs=1", "run_dir=run"]
    remedy = "packages=[my_module_of_layers]"
    refusal = train(tmp_path, *own, code=2)
    assert remedy in refusal and not (tmp_path / "run").exists()
    train(tmp_path, *own, remedy)
    with pytest.raises(InputError, match=r"packages=\[my_module_of_layers\]"):
        load_flow(tmp_path / "run")  # a file cannot choose it
    assert load_flow(tmp_path / "run", packages=("flows", "my_module_of_layers"))
    again = ["resume=run", "trainer.max_epochs=2", own[1]]
    assert remedy in train(tmp_path, *again, code=2)
    train(tmp_path, *again, remedy)


def test_apple_s_gpus_are_never_chosen(monkeypatch, capsys):
    from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

    from flows.training.run import build_trainer

    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    trainer = build_trainer(compose("experiment=smoke", "run_dir=x", "trainer.accelerator=auto"), [])
    assert isinstance(trainer.accelerator, CPUAccelerator)
    assert "no float64" in capsys.readouterr().out


def test_lightning_s_own_loading_says_what_to_use_instead():
    with pytest.raises(InputError, match=r"flows\.load_flow"):
        FlowModule.load_from_checkpoint("some.ckpt")
