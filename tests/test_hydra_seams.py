"""A seam that moves fails here, by its name, before anything else does."""

from flows.config.hydra_seams import read_command_line


def test_read_command_line_tells_hydras_flags_from_overrides():
    read = read_command_line(["--multirun", "--cfg", "job", "seed=1,2", "mixing=emerging"])
    assert (read.overrides, read.multirun, read.cfg) == (["seed=1,2", "mixing=emerging"], True, "job")
    flags = ("help", "hydra_help", "shell_completion", "info", "config_dir", "config_path", "config_name")
    assert not any(getattr(read, flag) for flag in flags)
