"""Draw samples from a trained flow, interpolate between images, or reconstruct them: ``python sample.py --help``."""

if __name__ == "__main__":
    from flows.processes import startup

    startup.begin()  # before the seconds that imports take

    from flows.cli import entry

    entry.run("flows.programs.sample.sample", "sample")
