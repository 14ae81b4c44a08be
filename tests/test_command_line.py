"""Configuration: everything shipped composes and builds, and every mistake is named before any work."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from support.configs import CONF, GROUPS, OPTIONS, check_train, compose
from support.programs import ROOT

from flows import InputError
from flows.cli.command_line import check_command_line
from flows.cli.entry import EXIT_CODES
from flows.config.building import build, check
from flows.config.overrides import SINGLE, with_whole_values
from flows.processes import signals


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_shipped_option_composes_and_fits_what_it_builds(group, option):
    check_train(SINGLE, f"{group}={option}")


def test_values_reach_what_they_configure():
    config = compose("model.num_levels=3", "mixing=conv1x1_qr", "mixing.num_reflections=2", "network.edge_bias=false")
    flow = build(config["model"])
    step = flow.steps()[0][1]
    assert len(flow.levels) == 3
    assert step.mixing.weight.reflections.shape[1] == 2
    assert step.coupling.network.first.edge_bias is None
    assert flow.top.gaussian.edge_bias is None
    assert flow.factor_outs[0].gaussian.convolution.convolution.edge_bias is None


@pytest.mark.parametrize("word", ["data.root=", "run_dir=''", '+images=""'])
def test_an_empty_value_is_not_the_working_directory(word):
    with pytest.raises(InputError, match="gives no value"):
        with_whole_values(["seed=1", word])


def test_a_tilde_is_the_home_folder_wherever_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["data.root=~/a b", "run_dir='~/x'", "runs=[~/a,~,b~/c]", "images=~", "~callbacks.best", "a=x~", "-m"]
    expected = ["data.root=/home/me/a b", "run_dir='/home/me/x'", "runs=[/home/me/a,/home/me,b~/c]", "images=/home/me"]
    assert with_whole_values(given) == [*expected, "~callbacks.best", "a=x~", "-m"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["mixing=periodic", "data=hubble"],
        ["model.num_levels=3", "model.num_steps=8", "model.hidden_channels=128"],
        ["experiment=smoke"],
        ["-m", "mixing=conv1x1,emerging,periodic", "seed=1,2,3"],
        ["-m", "experiment=glob(*)"],
        ["-m", "optimizer.lr=interval(1e-4,1e-2)"],
        ["-m", "model.num_steps=range(1,4)"],
        ["callbacks.averaging=null"],
        ["~callbacks.averaging"],
        ["+trainer.limit_train_batches=3"],
        ["hydra.run.dir=elsewhere"],
        ["data.num_channels=1"],
        ["optimizer.lr=1"],
    ],
)
def test_good_command_lines_pass(arguments):
    check_train(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mixing=emergin"], ["there is no mixing=emergin", "did you mean 'emerging'"]),
        (["dta=photos"], ["'dta'", "did you mean 'data'"]),
        (["modle.num_levels=2"], ["'modle.num_levels'", "did you mean 'model.num_levels'"]),
        (["model.num_level=2"], ["'model.num_level'", "'model.num_levels'"]),
        (["lr=1"], ["'lr'", "'optimizer.lr'"]),
        (["sede=1"], ["'sede'", "'seed'"]),
        (["seed=abc"], ["seed", "abc"]),
        (["model.num_levels=three"], ["model.num_levels must be a valid integer", "'three'"]),
        (["model.num_levels=2.5"], ["model.num_levels must be a valid integer", "2.5"]),
        (["optimizer.lr=fast"], ["optimizer.lr must be a valid number", "'fast'"]),
        (["network.edge_bias=1"], ["network.edge_bias must be a valid boolean"]),
        (["mixing=conv1x1", "mixing.parametrization=lu"], ["mixing.parametrization must be 'plain', 'plu' or 'qr'"]),
        (["+mixing.kernl_size=3"], ["kernl_size", "did you mean 'kernel_size'"]),
        (["+trainer.max_epoch=3"], ["max_epoch", "did you mean 'max_epochs'"]),
        (["experiment=smok"], ["there is no experiment=smok", "did you mean 'smoke'"]),
        (["-m", "mixing=conv1x1,emergin"], ["there is no mixing=emergin"]),
        (["-m", "model.num_steps=2,many"], ["model.num_steps must be a valid integer", "'many'"]),
        (["-m", "experiment=glob(nothing*)"], ["matches no option"]),
        (["mixing=conv1x1,emerging"], ["add -m"]),
        (["logger=null"], ["'logger=null' names no option; some are csv, tensorboard, wandb"]),
        (["hparams_search=optuna"], ["searches among several values: add -m"]),
        (["--config-dir", "own", "seed=1"], ["--config-dir is not supported", "hydra.searchpath"]),
        (["mixing"], ["cannot read the override 'mixing'"]),
    ],
)
def test_mistakes_are_named_with_their_near_matches(arguments, words):
    with pytest.raises(InputError) as caught:
        check_train(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_configuration_files_of_one_s_own_are_found_beside_the_shipped_ones(tmp_path):
    (tmp_path / "mixing").mkdir()
    shutil.copy(CONF / "mixing/conv1x1.yaml", tmp_path / "mixing/mine.yaml")
    check_train("mixing=mine", f"hydra.searchpath=[{tmp_path}]")


def test_a_typo_in_a_file_is_found_too(tmp_path):
    config = compose()
    config["model"]["num_stepps"] = 3
    with pytest.raises(InputError, match=r"model\.num_stepps.*did you mean 'num_steps'"):
        check(config)


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"mixing\._target_ names flows\.layers\.Emerging"):
        check({"mixing": {"_target_": "flows.layers.Emerging"}})


def test_exit_codes_tell_the_failures_apart():
    codes = [0, 1, signals.EXIT_CODE, *EXIT_CODES.values()]  # all went well, a bug, a signal, what a user can mend
    assert len(set(codes)) == len(codes)


def test_help_says_what_every_group_is_for():
    text = (CONF / "train.yaml").read_text()
    template = text[text.index("template:") :]
    for group in GROUPS:
        assert re.search(rf"^\s+{group}\s+\w|\s{group}\s+\w", template, re.MULTILINE), group


DOCUMENTS = [ROOT / "README.md", *(path for path in (ROOT / "docs").glob("*.md") if path.name != "TUTORIAL.md")]
TEXT = "\n".join(path.read_text() for path in DOCUMENTS).replace("\\\n", " ")
COMMANDS = set(re.findall(r"^(?:\./with-env )?python (\w+)\.py ?([^#\n]*)", TEXT, re.MULTILINE))


@pytest.mark.parametrize(("program", "arguments"), sorted(COMMANDS))
def test_every_command_of_the_documents_is_right(program, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{program}.py"])
    words = [word for word in shlex.split(arguments) if not word.startswith("resume=")]
    check_command_line(CONF, program, words)


def test_a_wrong_command_line_waits_for_no_import_of_torch():
    program = "import sys; from flows.cli import entry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=600)
