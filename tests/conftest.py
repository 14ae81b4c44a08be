"""What all tests share: one thread (pytest-xdist runs one process per core), a fixed seed, a neutral environment."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the programs that tests start

import pytest
import torch

pytest.register_assert_rewrite("support")
pytest_plugins = ["support.fake_graphs", "support.short_runs", "support.slurm"]  # fixtures

# By these variables a program takes itself for a part of a job, a training or a sweep, says things in another way, or
# asks somebody else than a test's own server. Where SLURM is stays known.
FAMILIES = ("SLURM", "SBATCH", "SRUN", "SUBMITIT", "WANDB", "HYDRA", "MASTER", "TORCHELASTIC", "PL")
SINGLE = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "COLUMNS", "FORCE_COLOR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
for name in list(os.environ):
    is_foreign = name.split("_")[0] in FAMILIES or name.upper() in SINGLE + PROXIES
    if is_foreign and name not in ("SLURM_CONF", "SLURM_ROOT"):
        del os.environ[name]
os.environ["WANDB_X_SERVICE_WAIT"] = "600"  # seconds that its client's process may take to start on a busy machine


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded_with_one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)
