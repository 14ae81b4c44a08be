"""Sweeps: one program, many jobs. What is the same for every launcher.

A job is named after its overrides (:mod:`.names`), its folder says whether it is done (:mod:`.folders`), all of them
end up in one table (:mod:`.summary`). :class:`.launcher.SweepLauncher` puts these together; the launchers in
``hydra_plugins`` only say how a job is run: in this process, in one of its own (:mod:`.processes`), or on a cluster.
"""
