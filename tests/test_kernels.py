"""The C tests of the compiled kernels, under AddressSanitizer and UndefinedBehaviorSanitizer, on some of the shapes."""

import shutil

import pytest
from support.programs import ROOT, execute

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_kernels_read_and_write_nothing_but_their_own_and_solve_what_they_are_given():
    said = execute(ROOT / "csrc/sanitize.sh", 17, cwd=ROOT).stdout.splitlines()
    assert [line.endswith(", 0 wrong") for line in said] == [True] * 5
