"""Train a flow: ``python train.py [group=option ...] [key=value ...]``; ``--help`` lists what there is."""

if __name__ == "__main__":
    from flows.processes import startup

    startup.begin(is_resumable=True)  # before the seconds that imports take

    from flows.cli import entry

    entry.run("flows.training.run.train", "train")
