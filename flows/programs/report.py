"""A report on any set of runs, as Markdown and as one HTML page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import get_args

import torch
from omegaconf import DictConfig, ListConfig

from flows import InputError, NonFiniteError, console, load_flow
from flows.measures.timing import describe_machine, device_name, fastest_of_many
from flows.programs.inputs import pick_device, require_positive
from flows.reporting import (
    Collection,
    Comparison,
    Problem,
    Row,
    SamplingTimes,
    collect,
    compare,
    make_report,
    write_report,
)
from flows.runs.checkpoint import Weights, find_checkpoint

TEMPERATURE, SECONDS, ROUNDS = 0.7, 2.0, 3
"""Of the samples that are timed; and how long each comparison takes turns, at least."""


def report(cfg: DictConfig) -> None:
    """Read, compare, time, write."""
    if cfg.weights not in get_args(Weights):
        raise InputError(f"weights must be {' or '.join(get_args(Weights))}, not '{cfg.weights}'")
    require_positive(cfg, "batch_size")
    places = [str(place) for place in cfg.runs] if isinstance(cfg.runs, ListConfig) else [str(cfg.runs)]
    device = pick_device(cfg.device)
    collection = collect(places)
    comparisons = compare(collection)
    times = {}
    if cfg.timing:
        for comparison in comparisons:
            milliseconds = _time_sampling(comparison, cfg, device, collection)
            times[comparison] = SamplingTimes(milliseconds, cfg.batch_size, _machine(device))
    html, markdown = write_report(make_report(collection, comparisons, cfg.weights, times), Path(cfg.output))
    for problem in collection.problems:
        console.say(f"{problem.where}: {problem.what}")
    console.show_paths([("HTML", html), ("Markdown", markdown)])


def _time_sampling(
    comparison: Comparison, cfg: DictConfig, device: torch.device, collection: Collection
) -> dict[Row, float]:
    """Milliseconds per image for every row that has a checkpoint; the rows take turns."""
    candidates = {}
    with console.progress(f"sampling times, {comparison.setting.data}", len(comparison.rows)) as advance:
        for row in comparison.rows:
            advance(1)
            if not row.finished:
                continue
            folder = row.finished[0].folder
            try:
                flow = load_flow(find_checkpoint(folder), cfg.weights, device, ("flows", *cfg.packages))
                latents = flow.sample_latents(cfg.batch_size, TEMPERATURE, torch.Generator().manual_seed(0))
                flow.decode(latents)
            except (InputError, NonFiniteError) as error:
                collection.problems.append(Problem(str(folder), f"its sampling time could not be measured: {error}"))
                continue
            candidates[row] = partial(flow.decode, latents)
        numbered = {str(number): candidate for number, candidate in enumerate(candidates.values())}
        best = fastest_of_many(numbered, seconds=SECONDS, device=device, min_rounds=ROUNDS) if numbered else {}
    return {row: 1000 * seconds / cfg.batch_size for row, seconds in zip(candidates, best.values(), strict=True)}


def _machine(device: torch.device) -> str:
    machine = describe_machine(device)
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    return f"{device_name(device)}{load}, torch {machine['torch']}"
