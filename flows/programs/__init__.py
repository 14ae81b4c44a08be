"""What the programs do that work from checkpoints, runs or data sets, a file each; ``train.py``'s is flows.training."""
