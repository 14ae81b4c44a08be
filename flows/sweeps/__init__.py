"""Sweeps: one program, many jobs.

A :mod:`.sweeper` says which jobs there are, and keeps one table of how they end: its grid makes all combinations,
:mod:`.search` those that Optuna proposes for a :mod:`.study`. A :mod:`.job` is named after what is swept, and its
folder says whether it is done. A :mod:`.launcher` runs them: in this process, in those of a :mod:`.local_pool`, or on a
cluster with :mod:`.slurm`. Hydra finds the sweepers by ``hydra_plugins/flows.py`` and ``conf/hydra/``.
"""
