"""The Python of README.md and of the pages in docs/ runs, and so do the commands that train with code of one's own."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from support.forks import run_forked
from support.programs import ROOT, TINY

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"(?:`([\w/.]+)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""The tutorial's files belong into the project and have a test of their own, tests/test_tutorial.py."""
WITH_PYTHON = [path for path in PAGES if "```python\n" in path.read_text() and path.name != "TUTORIAL.md"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a run has been."""
    folder = tmp_path_factory.mktemp("trained")
    run_forked("train.py", *TINY, "run_dir=runs/my-run", cwd=folder)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda path: path.stem)
def test_what_a_page_says_works(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(trained))
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    monkeypatch.setenv("NOTEBOOK_SECONDS", "2")  # of training, for a minute
    names: dict[str, object] = {}  # a page is a notebook
    for file, language, body in BLOCK.findall(page.read_text()):
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(body)
        elif language == "python":
            exec(body, names)
        for program, arguments in re.findall(r"^flows (\w+) (.*)", body, re.MULTILINE):
            tiny = TINY if program == "train" else ["num_samples=4"]
            run_forked(f"{program}.py", *tiny, *shlex.split(arguments, comments=True), cwd=trained)
