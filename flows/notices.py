"""What a user should know though nothing ends by it."""

import sys


def warn(line: str) -> None:
    """Print one line on stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)
