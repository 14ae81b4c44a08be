"""Configuration: everything shipped composes and builds, and every mistake is named before any work."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import Literal, get_args, get_origin

import pytest
from hydra import initialize_config_dir
from hydra.utils import get_object
from support.configs import CONF, GROUPS, NEEDED, OPTIONS, check_train, compose
from support.programs import ROOT, error_line, execute, run

from flows import InputError
from flows.cli.command_line import check_command_line, compose_resolved, help_for
from flows.cli.entry import EXIT_CODES
from flows.config.building import build, is_node, nodes, type_hints
from flows.config.overrides import SINGLE, with_whole_values
from flows.numerics import Precision
from flows.processes import signals
from flows.programs.sample import MODES
from flows.runs.checkpoint import Weights


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
        ["-m", "optimizer.lr=interval(1e-4,1e-2)"],
        ["-m", "model.num_steps=range(1,4)"],
        ["callbacks.averaging=null"],
        ["~callbacks.averaging"],
        ["+trainer.limit_train_batches=3"],
        ["hydra.run.dir=elsewhere"],
        ["data.num_channels=1"],
        ["optimizer.lr=1"],
        ["model.hidden_channels=match", "budget=conv1x1@64"],
        ["seed=1,2", "-m", "mixing=emerging"],
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
        (["lr=1"], ["'lr'", "'optimizer.lr'"]),
        (["seed=abc"], ["seed", "abc"]),
        (["model.num_levels=2.5"], ["model.num_levels must be a valid integer", "2.5"]),
        (["optimizer.lr=fast"], ["optimizer.lr must be a valid number", "'fast'"]),
        (["network.edge_bias=1"], ["network.edge_bias must be a valid boolean"]),
        (["mixing=conv1x1", "mixing.parametrization=lu"], ["mixing.parametrization must be 'plain', 'plu' or 'qr'"]),
        (["+mixing.kernl_size=3"], ["kernl_size", "did you mean 'kernel_size'"]),
        (["-m", "mixing=conv1x1,emergin"], ["there is no mixing=emergin"]),
        (["-m", "experiment=glob(nothing*)"], ["matches no option"]),
        (["logger=null"], ["'logger=null' names no option; some are csv, tensorboard, wandb"]),
        (["hparams_search=optuna"], ["searches among several values: add -m"]),
        (["--config-dir", "own", "seed=1"], ["--config-dir is not supported", "hydra.searchpath"]),
        (["mixing"], ["cannot read the override 'mixing'", "it should be key=value"]),
        (["run_dir=a(b,$c"], ["""write 'run_dir='"'"'a(b,$c'"'"''"""]),
        (["run_dir=a,b"], ["add -m", """for a text with these characters write "run_dir='a,b'\""""]),
        (["trainer.max_steps=3"], ["no configuration key 'trainer.max_steps'", "+trainer.max_steps=3 adds it"]),
        (["++optimiser.lr=5"], ["nothing would read 'optimiser'; did you mean 'optimizer'?"]),
        (["--lr", "0.1"], ["there is no option --lr", "lr=VALUE"]),
        (["--data=photos"], ["there is no option --data=photos", "data=photos"]),
        (["--cfg", "x"], ["invalid choice: 'x'"]),
        (["-m", "seed=1,2", "--cfg", "job"], ["leave -m out"]),
        (["~optimizer"], ["optimizer=... must be given"]),
        (["experiment=smoke", "~data"], ["~data leaves it out"]),
        (["run_dir=s3://bucket/x"], ["give a path"]),
        (["optimizer._partial_=false"], ["optimizer._partial_ must be true"]),
        (["callbacks.averaging=None"], ["callbacks.averaging must be a node with _target_ or null, not 'None'"]),
        (["mixing._target_=flows.layers.Emerging"], ["mixing._target_ names flows.layers.Emerging"]),
        (["model.mixing=3"], ["model.mixing must be callable"]),
        (["++prior=3"], ["prior"]),
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


def test_this_machines_settings_count_more_than_other_files_and_less_than_the_command_line(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/local").mkdir(exist_ok=True)
    (tmp_path / "conf/local/default.yaml").write_text("# @package _global_\ndata_dir: /large\n")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path / "conf")):
        assert compose_resolved("train", ["data=cifar10"])["data"]["prepared_dir"] == "/large/prepared"
        assert compose_resolved("prepare", ["data_dir=mine"])["data"]["download_dir"] == "mine/downloads"


def test_exit_codes_tell_the_failures_apart():
    codes = [0, 1, signals.EXIT_CODE, *EXIT_CODES.values()]  # all went well, a bug, a signal, what a user can mend
    assert len(set(codes)) == len(codes)


ROOT_CHOICES = {"precision": get_args(Precision), "weights": get_args(Weights), "mode": [*MODES]}
"""Words that a key at a program's root takes, besides its default."""


def explained(program, *arguments):
    """What ``--help`` prints about each key: its value and its explanation."""
    text = help_for(CONF, program, ["--help", *arguments])
    assert text is not None
    lines = text[text.index("Every key with its value") :].splitlines()[2:]
    return {key: value.partition("  # ") for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("program", NEEDED)
def test_help_explains_every_key_of_its_program(program):
    keys = explained(program, *NEEDED[program])
    assert [key for key, (_, _, explanation) in keys.items() if not explanation] == []
    for key, (value, _, explanation) in keys.items():
        if "." not in key and key in ROOT_CHOICES:
            assert [word for word in ROOT_CHOICES[key] if word not in f"{value} {explanation}"] == []


CHOSEN = [pair for pair in OPTIONS if pair[0] not in ("experiment", "hparams_search")]


@pytest.mark.parametrize(("group", "option"), CHOSEN)
def test_help_names_the_values_that_the_types_allow(group, option):
    """Of every option of every group: each key is explained, with all words that its type allows."""
    keys = explained("train", f"{group}={option}")
    unexplained = [key for key, (_, _, text) in keys.items() if key.split(".")[0] == group and not text]
    assert unexplained == []
    for path, node in nodes(compose(f"{group}={option}")):
        hints = type_hints(get_object(node["_target_"])) if is_node(node) else {}
        for key in set(hints) & set(node if hints else ()):
            shown = keys.get(f"{path}.{key}")
            if shown is not None and get_origin(hints[key]) is Literal:
                unsaid = [word for word in get_args(hints[key]) if word not in " ".join((str(node[key]), *shown))]
                assert unsaid == [], f"{path}.{key}"


def test_version_is_the_projects_own():
    assert run("train.py", "--version", cwd=ROOT).stdout == f"emerging-flows {version('emerging-flows')}\n"


@pytest.mark.parametrize("program", NEEDED)
def test_outside_of_the_environment_a_program_says_what_to_run(program, tmp_path):
    interpreter = [sys.executable, "-S", "-E"]  # without what is installed
    done = execute(*interpreter, ROOT / f"{program}.py", "a=b c", cwd=tmp_path, code=2)
    launcher = os.path.relpath(ROOT / "with-env", tmp_path)
    assert error_line(done.stderr).endswith(f": {launcher} python {ROOT / program}.py 'a=b c'")


PRINTS = """
import sys
from flows.cli.startup import guard_output
guard_output()
for number in range(20_000):
    print("\\u00e9 \\udcff", number)
print("to the end", file=sys.stderr)
open("file", "w").write("whole")
"""


@pytest.mark.parametrize("how", ["| head -1", "> /dev/full", ">&-", ">&- 2>&-", "2>/dev/full | head -1"])
def test_no_output_ends_a_program(how, tmp_path):
    """A pipe that closes, a full disk, no output at all, a terminal without the letters."""
    (tmp_path / "prints.py").write_text(PRINTS)
    command = f"set -o pipefail; {shlex.quote(sys.executable)} prints.py {how}"
    done = execute("bash", "-c", command, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert (tmp_path / "file").read_text() == "whole"
    assert done.stdout in ("", "\\xe9 \\udcff 0\n")


def test_a_full_disk_ends_no_program_that_prints():
    execute("bash", "-c", f"{shlex.quote(sys.executable)} train.py --version > /dev/full", cwd=ROOT)


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
