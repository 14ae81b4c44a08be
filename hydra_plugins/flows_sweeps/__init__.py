"""Hydra finds its launchers and sweepers here; what they share is in :mod:`flows.cli.sweeps`.

Hydra runs these modules before it enters them into ``sys.modules``, and dataclasses look their annotations up there if
these are texts: hence no ``from __future__ import annotations``.
"""
