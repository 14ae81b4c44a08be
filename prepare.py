"""Download or convert a data set once, check it, look at it: ``python prepare.py data=NAME``; ``--help`` says more."""

if __name__ == "__main__":
    from flows.processes import startup

    startup.begin()  # before the seconds that imports take

    from flows.cli import entry

    entry.run("flows.programs.prepare.prepare", "prepare")
