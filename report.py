"""A report on any set of runs, as Markdown and as one HTML page: ``python report.py runs=FOLDER``; ``--help``."""

if __name__ == "__main__":
    from flows.cli import startup

    startup.run("flows.programs.report.report", "report")
