"""Checkpoints: read without running anything, written whole or not at all."""

import json
import os
import re
import resource
import sys

import pytest
import torch
from support.configs import CONF
from support.sources import flipped

import flows
import flows.layers
from flows import InputError, StorageError, load_flow
from flows.cli.command_line import check_command_line
from flows.config.building import build, build_trusted
from flows.files import atomic_write
from flows.runs.checkpoint import FORMAT, find_checkpoint, load_weights, newest_good, newest_whole, read_checkpoint
from flows.runs.claim import require_unclaimed, require_writable, run_name, write_config
from flows.runs.resume import changed_settings, checkpoint_to_resume, replay_when_resuming, require_same_settings
from flows.training.checkpoint_io import AtomicCheckpointIO

SHUFFLE = {"_target_": "flows.layers.Shuffle", "_partial_": True}
MODEL = {
    "_target_": "flows.Flow",
    "image_shape": [1, 4, 4],
    "mixing": SHUFFLE,
    "coupling": {"_target_": "flows.layers.AffineCoupling", "_partial_": True},
    "num_levels": 1,
    "num_steps": 2,
    "hidden_channels": 4,
}


def content(model=MODEL, **more):
    flow = build(MODEL)
    state = {f"flow.{name}": value for name, value in flow.state_dict().items()}
    return {"format": FORMAT, "config": {"model": model}, "overrides": [], "state_dict": state, **more}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "some.ckpt"
    torch.save(content(), path)
    return path


def test_a_flipped_bit_is_found_or_without_effect(saved, tmp_path):
    whole, before = saved.read_bytes(), read_checkpoint(saved)
    num_found = 0
    for position in range(0, len(whole), len(whole) // 150):
        (tmp_path / "damaged.ckpt").write_bytes(flipped(whole, position))
        try:
            after = read_checkpoint(tmp_path / "damaged.ckpt")
        except InputError as error:
            assert "damaged.ckpt cannot be read" in str(error)
            num_found += 1
        else:
            for name, value in before["state_dict"].items():
                assert torch.equal(value, after["state_dict"][name])
    assert num_found > 30


def test_a_flipped_weight_is_not_resumed_from(tmp_path):
    path = tmp_path / "some.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, whole.index(bytes(400)) + 200))
    with pytest.raises(InputError, match="checksum of"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


def test_a_good_checkpoint_has_finite_weights_from_before_the_step_that_failed(tmp_path):
    for number, (step, weight) in enumerate([(2, 1.0), (4, 1.0), (6, 1.0), (5, float("nan"))]):
        path = tmp_path / f"{step}.ckpt"
        torch.save(content() | {"global_step": step, "current_model_state": {"w": torch.tensor(weight)}}, path)
        os.utime(path, (number, number))
    assert newest_good(tmp_path, failed_step=7) == tmp_path / "6.ckpt"
    assert newest_good(tmp_path, failed_step=6) == tmp_path / "4.ckpt"
    assert newest_good(tmp_path, failed_step=2) is None


def test_the_newest_whole_checkpoint_of_a_run_is_found(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for written, name in enumerate(("step=2", "best", "step=1", "last")):
        torch.save(content(written=written, global_step=0), folder / f"{name}.ckpt")
    assert newest_whole(folder) == (folder / "last.ckpt", [])
    assert checkpoint_to_resume("auto", tmp_path) == folder / "last.ckpt"
    assert checkpoint_to_resume("auto", tmp_path / "new") is None
    for name in ("last", "step=1"):
        os.truncate(folder / f"{name}.ckpt", 100)
    newest, damaged = newest_whole(folder)
    assert newest == folder / "best.ckpt"
    assert sorted(str(error).split()[0] for error in damaged) == [f"{folder}/last.ckpt", f"{folder}/step=1.ckpt"]
    for name in ("best", "step=2"):
        os.truncate(folder / f"{name}.ckpt", 100)
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint_to_resume("auto", tmp_path)
    assert len(list(folder.iterdir())) == 4


def test_a_checkpoint_says_itself_when_it_was_written(tmp_path):
    """A copy made by tar may have one time for all files, and a training that went back has later, earlier steps."""
    for name, written, step in (("best", 20, 6), ("step=0000008", 10, 8), ("last", 30, 7)):
        torch.save(content(written=written, global_step=step), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1, 1))
    assert newest_whole(tmp_path) == (tmp_path / "last.ckpt", [])
    torch.save(content(global_step=9), tmp_path / "step=9.ckpt")  # of an earlier version
    torch.save(content(global_step=10), tmp_path / "step=10.ckpt")
    for path in tmp_path.glob("*.ckpt"):
        os.utime(path, (1, 1))
    assert newest_whole(tmp_path)[0].name == "step=10.ckpt"


def test_a_flow_comes_back_as_it_was(saved):
    flow = load_flow(saved)
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(flow.decode(flow.encode(images)), images)
    assert not flow.training


def test_raw_and_averaged_weights_are_told_apart(saved, tmp_path):
    raw = content()["state_dict"]
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}
    torch.save(content() | {"state_dict": averaged, "current_model_state": raw}, tmp_path / "both.ckpt")
    name = "top.gaussian.bias"
    assert torch.equal(load_flow(tmp_path / "both.ckpt").state_dict()[name], raw[f"flow.{name}"])
    loaded = load_flow(tmp_path / "both.ckpt", weights="averaged")
    assert torch.equal(loaded.state_dict()[name], averaged[f"flow.{name}"])
    with pytest.raises(InputError, match="no averaged weights"):
        load_flow(saved, weights="averaged")


def test_missing_truncated_and_foreign_files_are_refused(saved, tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_flow(tmp_path / "nothing.ckpt")
    whole = saved.read_bytes()
    for broken in (b"", whole[:10], whole[: len(whole) // 2], whole[:-10], b"hello"):
        saved.write_bytes(broken)
        with pytest.raises(InputError, match="truncated"):
            load_flow(saved)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"format": None}, "not a checkpoint of this project"),
        ({"config": [1]}, "not a checkpoint of this project"),
        ({"state_dict": [1, 2]}, "not a checkpoint of this project"),
        ({"overrides": None}, "not a checkpoint of this project"),
        ({"state_dict": {1: 2}}, "do not fit"),
        ({"config": {"model": MODEL | {"num_steps": 3}}}, "do not fit"),
        ({"config": {}}, "has no model"),
        ({"config": {"model": MODEL | {"bogus": 1}}}, "bogus"),
        ({"config": {"model": MODEL | {"hidden_channels": "eight"}}}, "hidden_channels"),
        ({"config": {"model": MODEL | {"num_levels": "${oc.env:HOME}"}}}, "interpolation"),
        ({"config": {"model": {key: value for key, value in MODEL.items() if key != "mixing"}}}, "mixing"),
        ({"config": {"model": MODEL | {"mixing": SHUFFLE | {"_partial_": False, "num_channels": 4}}}}, "mixing"),
        ({"config": {"model": MODEL | {"mixing": SHUFFLE | {"_partial_": "yes"}}}}, "_partial_"),
    ],
)
def test_a_checkpoint_that_does_not_make_sense_is_refused_in_one_line(tmp_path, damage, words):
    torch.save(content() | damage, tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match=words) as caught:
        load_flow(tmp_path / "damaged.ckpt")
    assert "\n" not in str(caught.value)


class _Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content() | {"extra": _Harmful()}, tmp_path / "harmful.ckpt")
    with pytest.raises(InputError, match="cannot be read"):
        load_flow(tmp_path / "harmful.ckpt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "flows.numerics.torch.load",
        "flows.runs.checkpoint.load_flow",
        "flows.training.callbacks.SamplePictures",
        "flows.layers.nonsense",
        "flowsx.Flow",
        "flows.layers.__import__",
        42,
    ],
)
def test_a_stored_configuration_builds_only_classes_of_this_project(tmp_path, target):
    for model in (
        {"_target_": target, "command": "touch harmed"},
        MODEL | {"mixing": {"_target_": target, "_partial_": True}},
    ):
        torch.save(content(model), tmp_path / "foreign.ckpt")
        with pytest.raises(InputError, match="stored configuration"):
            load_flow(tmp_path / "foreign.ckpt", packages=("flows", "os"))


def test_weights_are_taken_by_any_model_that_they_fit(saved):
    flow = build(MODEL | {"coupling": {"_target_": "flows.layers.AdditiveCoupling", "_partial_": True}})
    with pytest.raises(InputError, match=r"\d+ of \d+ differ in name or shape, levels\.0\."):
        load_weights(flow, saved)
    flow = build(MODEL | {"margin": None})
    load_weights(flow, saved)
    assert torch.equal(flow.state_dict()["top.gaussian.bias"], load_flow(saved).state_dict()["top.gaussian.bias"])


def test_foreign_modules_are_not_even_imported(monkeypatch, tmp_path):
    (tmp_path / "eager.py").write_text("import builtins\nbuiltins.imported_eager = True\nclass Layer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(content(MODEL | {"mixing": {"_target_": "eager.Layer"}}), tmp_path / "some.ckpt")
    with pytest.raises(InputError, match="stored configuration"):
        load_flow(tmp_path / "some.ckpt")
    assert "eager" not in sys.modules


def test_foreign_layers_under_a_name_of_ours_are_refused(monkeypatch):
    foreign = type("Foreign", (flows.layers.Reverse,), {"__module__": "elsewhere"})
    monkeypatch.setattr(flows.layers, "Foreign", foreign, raising=False)
    with pytest.raises(InputError, match="only classes of"):
        build_trusted({"_target_": "flows.layers.Foreign", "num_channels": 2}, allowed=(flows.Layer,))


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_file_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists())))
    with atomic_write(path) as file:
        file.write(b"12345")
    assert synced == [(5, False)]


def test_a_failed_write_leaves_the_previous_checkpoint_and_nothing_else(tmp_path):
    save, limits = AtomicCheckpointIO().save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)
    save({"x": torch.zeros(10)}, tmp_path / "last.ckpt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*last\.ckpt: File too large.*untouched"):
            save({"x": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(torch.load(tmp_path / "last.ckpt")["x"]) == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_read_only_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"), atomic_write(tmp_path / "file" / "x.json") as file:
        file.write(b"")


def test_an_error_while_writing_is_not_mistaken_for_the_disk_s(tmp_path):
    with pytest.raises(KeyError), atomic_write(tmp_path / "x"):
        raise KeyError
    assert not list(tmp_path.iterdir())


# -- run folders -------------------------------------------------------------------------------------------------------


def test_checkpoints_are_found_by_file_folder_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, run in enumerate(("older", "newer")):
        for name in ("best", "last"):
            path = tmp_path / "runs" / run / "checkpoints" / f"{name}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (number, number))
    assert find_checkpoint("best").parts[-3:] == ("newer", "checkpoints", "best.ckpt")
    assert find_checkpoint("last").name == "last.ckpt"
    with pytest.raises(InputError, match="truncated"):
        load_flow("runs/older")  # it is found, but empty
    assert find_checkpoint("runs/older").parts[-3:] == ("older", "checkpoints", "best.ckpt")
    assert find_checkpoint("runs/older", prefer="last").name == "last.ckpt"
    assert find_checkpoint("runs/older/checkpoints/last.ckpt").name == "last.ckpt"
    for wrong in ("runs/none", "runs", "runs/older/checkpoints/none.ckpt"):
        with pytest.raises(InputError):
            find_checkpoint(wrong)


def test_a_run_folder_is_claimed_once(tmp_path):
    require_unclaimed(tmp_path / "run")
    write_config(tmp_path / "run", {"seed": 0}, [])
    with pytest.raises(InputError, match="holds a run already"):
        require_unclaimed(tmp_path / "run")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "12"}, "slurm-12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, "slurm-12_2"),
        ({"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "interactive"}, None),
        ({}, None),
    ],
)
def test_a_run_folder_s_name_is_the_job_s_or_unique(environment, name, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    run_name.cache_clear()
    assert run_name() == name or (name is None and run_name().endswith(f"_{os.getpid()}"))
    assert run_name() == run_name()
    run_name.cache_clear()


def test_a_place_where_no_folder_can_be_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new" / "run")
    with pytest.raises(StorageError, match="is not a folder"):
        check_command_line(CONF, "train", [f"run_dir={tmp_path}/file/run"])


@pytest.mark.parametrize(
    "harmful",
    [
        "+callbacks.evil._target_=torch.load",
        "+callbacks.evil={_target_:torch.load,f:payload}",
        "callbacks.samples.folder=${oc.env:HOME}",
        "experiment=../../../tmp/evil",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra/launcher=evil",
        "hydra.searchpath=[file:///tmp]",
    ],
)
def test_resuming_takes_nothing_harmful_from_the_file(tmp_path, harmful):
    torch.save(content() | {"overrides": ["seed=3", harmful]}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="not taken from a file"):
        replay_when_resuming([f"resume={tmp_path}/evil.ckpt"])


def test_resuming_builds_only_what_the_configuration_files_name(tmp_path):
    arguments = ["+callbacks.mine._target_=pytorch_lightning.callbacks.Timer"]
    with pytest.raises(InputError, match=r"callbacks\.mine would build 'pytorch_lightning\.callbacks\.Timer'"):
        check_command_line(CONF, "train", arguments, given=[])
    check_command_line(CONF, "train", arguments, given=arguments)
    check_command_line(
        CONF, "train", [*arguments, "packages=[pytorch_lightning]"], given=["packages=[pytorch_lightning]"]
    )


def test_what_resuming_refuses_to_take_from_a_file_may_be_given(tmp_path):
    stored = ["data.root=../photos", "callbacks.mine._target_=mine.Callback", "packages=[evil]", "+packages=[evil]"]
    torch.save(content() | {"overrides": stored}, tmp_path / "some.ckpt")
    with pytest.raises(InputError, match="give it yourself"):
        replay_when_resuming([f"resume={tmp_path}/some.ckpt"])
    given = ["callbacks.mine._target_=mine.Other", f"resume={tmp_path}/some.ckpt"]
    assert replay_when_resuming(given) == ["data.root=../photos", given[0], f"resume='{tmp_path}/some.ckpt'"]


def test_resuming_replays_and_what_is_given_now_counts_more(tmp_path):
    torch.save(content() | {"overrides": ["mixing=periodic", "seed=3", "run_dir=old"]}, tmp_path / "some.ckpt")
    replayed = replay_when_resuming(["--cfg", "job", f"resume={tmp_path}/some.ckpt", "seed=4"])
    assert replayed == ["--cfg", "job", "mixing=periodic", "seed=4", f"resume='{tmp_path}/some.ckpt'"]


CONFIG = {
    "run_dir": "/runs/a",
    "model": MODEL,
    "data": {"seed": 0, "root": "/data"},
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]},
    "schedule": {"warmup_steps": 5, "num_steps": None},
    "trainer": {"max_epochs": 1},
    "callbacks": {"best": {"dirpath": "/runs/a/checkpoints"}, "averaging": {"decay": 0.5}},
    "logger": {"csv": {"save_dir": "/runs/a"}},
}


@pytest.mark.parametrize(
    ("key", "value", "is_taken"),
    [
        ("model.num_steps", 5, False),
        ("data.seed", 1, False),
        ("optimizer.betas", [0.9, 0.9], False),
        ("parameter_groups", {"*.bias": {"lr": 0.2}}, False),
        ("init", "other.ckpt", False),
        ("schedule.num_steps", 100, True),
        ("trainer.max_epochs", 2, True),
        ("callbacks.averaging", None, True),
        ("keep_last", 3, True),
        ("model.memory", "recompute", True),
    ],
)
def test_resuming_refuses_what_would_be_written_down_and_not_used(tmp_path, key, value, is_taken):
    torch.save(content() | {"config": CONFIG}, tmp_path / "last.ckpt")
    config = json.loads(json.dumps(CONFIG).replace("/runs/a", "/moved/b"))
    config["data"] |= {"root": "/elsewhere", "num_workers": 4}
    config |= {"logger": {"tensorboard": {}}, "packages": ["mine"], "init": None}
    assert changed_settings(CONFIG, config) == []
    require_same_settings(tmp_path / "last.ckpt", config)
    *parents, leaf = key.split(".")
    (config[parents[0]] if parents else config)[leaf] = value
    assert changed_settings(CONFIG, config) == [key]
    if is_taken:
        require_same_settings(tmp_path / "last.ckpt", config)
    else:
        with pytest.raises(InputError, match=f"{re.escape(key)} would change.*init="):
            require_same_settings(tmp_path / "last.ckpt", config)
