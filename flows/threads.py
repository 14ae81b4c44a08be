"""How the threads of one operation wait for each other. Imports nothing that takes time.

PyTorch's threads (GNU OpenMP) meet at the end of every operation, and spin there for some milliseconds before they
sleep. On a machine that does nothing else this is as fast as can be. Beside one other busy process, a thread that waits
for its core is waited for by the others at full load, thousands of times a second: a step of training on two cores took
30 times as long. Spinning for 10,000 rounds only costs nothing measurable on a quiet machine, and beside that
process a step is five times as fast.
"""

from __future__ import annotations

import os

SPINS = "10000"


def share_the_machine() -> None:
    """Let waiting threads sleep soon, unless the user has decided; to be called before PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
