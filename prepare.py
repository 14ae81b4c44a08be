"""Download or convert a data set once, check it, look at it: ``python prepare.py data=NAME``; ``--help`` says more."""

if __name__ == "__main__":
    from flows.cli import startup

    startup.run("flows.programs.prepare.prepare", "prepare")
