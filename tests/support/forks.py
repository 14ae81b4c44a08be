"""Programs of the project in forked processes: as separate as a user's, without the seconds of a start."""

import multiprocessing.util
import os
import sys
import traceback
from pathlib import Path

from support.programs import ROOT, error_line

TASKS = {
    "train.py": "flows.training.run.train",
    "sample.py": "flows.programs.sample.sample",
    "evaluate.py": "flows.programs.evaluate.evaluate",
    "prepare.py": "flows.programs.prepare.prepare",
    "report.py": "flows.programs.report.report",
}


def fork(arguments, cwd, before=lambda: None, program="train.py"):
    """Start a program with some arguments in the folder ``cwd``; returns the process's number.

    What it prints goes to ``out.txt`` there, or nowhere. ``before()`` is called in the new process first.
    """
    import flows.training.run  # noqa: F401 once, before the fork
    from flows.cli import entry
    from flows.processes import signals

    pid = os.fork()
    if pid:
        return pid
    code = 1
    multiprocessing.util._run_after_forkers()  # as multiprocessing's own forks do: no listener of the parent's is ours
    try:
        os.setsid()
        os.chdir(cwd)
        output = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = [str(ROOT / program), *map(str, arguments)]
        signals.install(is_resumable=program == "train.py")
        before()
        entry.run(TASKS[program], Path(program).stem)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid):
    """The exit code of a forked process; minus the signal's number if one has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def output(folder):
    """All that was printed by the processes forked in a folder."""
    return (Path(folder) / "out.txt").read_text()


def run_forked(program, *arguments, cwd, code=0):
    """All that a forked program printed; its exit code must be ``code``. It leaves nothing of its own in ``cwd``."""
    found = wait(fork(arguments, cwd, program=program))
    said = output(cwd)
    (Path(cwd) / "out.txt").unlink()
    assert found == code, f"exit code {found}\n{said}"
    return said


def refusal(program, *arguments, cwd, code=2):
    """The one line in which a forked program refuses, and all that it prints."""
    return error_line(run_forked(program, *arguments, cwd=cwd, code=code))
