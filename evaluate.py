"""Bits/dim of a trained flow on its test split, or of a user's own images: ``python evaluate.py --help``."""

if __name__ == "__main__":
    from flows.cli import startup

    startup.run("flows.programs.evaluate.evaluate", "evaluate")
