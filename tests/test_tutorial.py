"""docs/TUTORIAL.md, followed to the letter in a copy of the project; only the trainings are made shorter."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.programs import ROOT, execute

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs" / "TUTORIAL.md").read_text()
BLOCKS = re.findall(r"(?:`([\w/.]+)`:\n\n)?(?:In `([\w/.]+)`[^\n]*:\n\n)?```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line for _, _, language, body in BLOCKS if language == "sh" for line in body.splitlines() if line.startswith("./")
]
SHORTER = ["trainer=cpu", "data.images_per_epoch=8", "data.batch_size=8", "trainer.max_epochs=1", "model.num_steps=1"]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the project with the tutorial's files in it, and the output of each command, in order."""
    folder = tmp_path_factory.mktemp("tutorial") / "emerging-flows"
    produced = {"runs", "build", "data", "sweeps"}  # by the programs, at the root; some are folders below, too
    folder.mkdir()
    for path in (path for path in ROOT.iterdir() if path.name[0] != "." and path.name not in produced):
        if path.is_dir():  # Python may be writing into its cache right now
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)
    for new_file, edited_file, _, body in BLOCKS:
        if new_file:
            (folder / new_file).write_text(body)
        if edited_file:
            path = folder / edited_file
            path.write_text(path.read_text().replace("LAYERS = {\n", f"LAYERS = {{\n{body}"))
    return folder, {command: _run(command, folder) for command in COMMANDS}


def _run(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command.removeprefix("./with-env "))
    if program == "pytest":
        arguments = ["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *arguments]
    if arguments[0] == "train.py" and "experiment=smoke" not in arguments:
        arguments += SHORTER
    return execute(sys.executable, *arguments, cwd=folder, env={"PYTHONPATH": str(folder)}).stdout


def test_every_command_works(followed):
    folder, output = followed
    assert " passed" in next(text for command, text in output.items() if "pytest" in command)
    assert len(list((folder / "sweeps/shift").glob("*/results.json"))) == 6
    report = (folder / "shift_report/report.md").read_text()
    assert "shift" in report and "conv1x1" in report
    sizes = {int(number.replace(",", "")) for number in re.findall(r"\b\d{2,3},\d{3}\b", report)}
    assert max(sizes) < 1.1 * min(sizes), "the compared flows are not equally large"
    assert (folder / "shift_report/report.html").is_file()
    assert (folder / "shift_samples.png").is_file()
