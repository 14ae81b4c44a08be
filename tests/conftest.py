"""What all tests share: one thread (pytest-xdist runs one process per core), and a fixed seed for every test."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the programs that tests start

import pytest
import torch
from cluster import slurm  # noqa: F401 a fixture

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
