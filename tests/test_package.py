"""The installed package: what needs which libraries, and the command ``flows``."""

import ast
import subprocess
import sys

import pytest
from support.programs import ROOT, execute

from flows import home
from flows.home import PROGRAMS, remedy_without

ALONE = {"torch", "numpy"}
OWN = {"flows", "datamodules"}


def imported(path):
    """The libraries that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - OWN


LIBRARIES = {name for folder in OWN for path in (ROOT / folder).rglob("*.py") for name in imported(path)}


@pytest.mark.parametrize("library", sorted(LIBRARIES - ALONE))
def test_an_extra_brings_each_library(library, monkeypatch):
    monkeypatch.setattr(home, "HOME", home.INSTALLED)
    brought_by_others = {"lightning_fabric": "pytorch_lightning", "torchmetrics": "pytorch_lightning"}
    assert remedy_without(brought_by_others.get(library, library)).startswith("pip install 'emerging-flows[")


def test_layers_solvers_and_models_need_no_extra():
    blocked = dict.fromkeys(LIBRARIES - ALONE)
    program = f"import sys; sys.modules.update({blocked}); import flows.layers, flows.solvers, flows.models.glow"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=600)


def test_what_lacks_a_library_says_how_to_get_it(tmp_path):
    start = "import runpy, sys; sys.modules['hydra'] = None; sys.argv[1:] = []; import flows"
    execute(sys.executable, "-c", f"{start}\ntry: flows.load_flow\nexcept ImportError as e: print(e)", cwd=tmp_path)
    train = f"{start}; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    done = execute(sys.executable, "-c", train, cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: this Python has no hydra; run it in the project's environment: ")
    assert remedy_without("mymodule") is None


def test_the_command_names_its_programs(tmp_path):
    start = [sys.executable, "-c", "from flows.cli.startup import main; main()"]
    assert all(name in execute(*start, "tran", cwd=tmp_path, code=2).stderr for name in PROGRAMS)
    assert "usage: python train.py" in execute(*start, "train", "--help", cwd=tmp_path).stdout


def test_commands_are_said_as_they_are_typed(monkeypatch):
    monkeypatch.setattr(home, "HOME", home.INSTALLED)
    assert home.as_typed("python train.py seed=1, then python report.py") == "flows train seed=1, then flows report"
