"""Train a flow: ``python train.py [group=option ...] [key=value ...]``; ``--help`` lists what there is."""

if __name__ == "__main__":
    from flows.cli import startup

    startup.run("flows.training.run.train", "train", is_resumable=True)
