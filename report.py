"""A report on any set of runs, as Markdown and as one HTML page: ``python report.py runs=FOLDER``; ``--help``."""

if __name__ == "__main__":
    from flows.processes import startup

    startup.begin()  # before the seconds that imports take

    from flows.cli import entry

    entry.run("flows.programs.report.report", "report")
