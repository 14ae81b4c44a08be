"""Sweeps: one program, many jobs.

A job is named after its overrides (:mod:`.names`), its folder says whether it is done (:mod:`.folders`), all of them
end up in one table (:mod:`.summary`). A :mod:`.sweeper` says which jobs there are: :mod:`.grid` all combinations,
:mod:`.search` those that Optuna proposes for a :mod:`.study`. A :mod:`.launcher` runs them: :mod:`.in_process`, in the
processes of a :mod:`.local_pool`, or on a cluster with :mod:`.slurm`. Hydra finds all of these in
``hydra_plugins/flows.py``.
"""
