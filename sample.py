"""Draw samples from a trained flow, interpolate between images, or reconstruct them: ``python sample.py --help``."""

if __name__ == "__main__":
    from flows.cli import startup

    startup.run("flows.programs.sample.sample", "sample")
