"""Bits/dim of a trained flow on its test split, or of a user's own images: ``python evaluate.py --help``."""

if __name__ == "__main__":
    from flows.processes import startup

    startup.begin()  # before the seconds that imports take

    from flows.cli import entry

    entry.run("flows.programs.evaluate.evaluate", "evaluate")
