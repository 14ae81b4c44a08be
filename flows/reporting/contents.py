"""What a report says: from compared runs to sections of text, tables and figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

import torch

from flows.console import duration, three_digits
from flows.measures.bits_per_dim import Score
from flows.reporting.collect import NOT_FINITE, SCORES, Collection, Run, Status
from flows.reporting.comparison import BASELINE, Block, Comparison, Row
from flows.reporting.figures import training_curves
from flows.reporting.page import NONE, Bold, Figure, Report, Section, Table
from flows.reporting.paper import scores_beside
from flows.reporting.statistics import DIGITS, Estimate, best
from flows.runs.checkpoint import Weights
from flows.runs.layout import FINAL_SAMPLES

MISSING, EVERY_RUN = "What is missing", "Every run"


@dataclass(frozen=True)
class SamplingTimes:
    """Milliseconds an image takes to sample, by row, and what that was measured with."""

    milliseconds: Mapping[Row, float]
    batch_size: int
    machine: str


def make_report(
    collection: Collection,
    comparisons: Sequence[Comparison],
    weights: Weights,
    times: Mapping[Comparison, SamplingTimes],
) -> Report:
    """Everything that there is to say about some runs.

    Args:
        collection: the runs and the problems met so far.
        comparisons: the same runs, sorted.
        weights: which weights' scores the differences take.
        times: sampling times, where they were measured.
    """
    names = _names(comparisons)
    results = [
        _results(comparison, names[comparison], weights, times.get(comparison), f"{number}")
        for number, comparison in enumerate(comparisons, 1)
    ]
    sections = [
        _summary(collection, names, weights),
        *results,
        _missing(collection, comparisons),
        _every_run(collection, names),
    ]
    subtitle = f"{_counted(comparisons)} Written {time.strftime('%Y-%m-%d %H:%M')}."
    return Report("Invertible convolutions: report", subtitle, sections)


def _names(comparisons: Sequence[Comparison]) -> dict[Comparison, str]:
    """A short name for each comparison: its data, and what tells it from others of the same data."""
    names: dict[Comparison, str] = {}
    for comparison in comparisons:
        setting = comparison.setting
        name = setting.data
        name += f", {setting.split} split" if setting.split != "test" else ""
        name += f", {setting.num_bits} bits" if setting.num_bits != 8 else ""
        name += f", K = {setting.num_noise_samples}" if setting.num_noise_samples != 1 else ""
        same = [*names.values()].count(name)
        names[comparison] = f"{name} ({same + 1})" if same else name
    return names


def _counted(comparisons: Sequence[Comparison]) -> str:
    rows = [row for comparison in comparisons for row in comparison.rows]
    counts = Counter(run.status for row in rows for run in row.runs)
    how_many = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
    return f"{_plural(counts.total(), 'run')} of {_plural(len(rows), 'configuration')}: {how_many}."


def _summary(collection: Collection, names: Mapping[Comparison, str], weights: Weights) -> Section:
    paragraphs = [
        "Scores are bits/dim on held-out images, lower is better: an upper bound, from K draws of dequantisation noise "
        "per image. Each is the mean over seeds ± the sample standard deviation (n - 1); a single run has none. "
        "Better, worse: beyond twice the standard error over the seeds. The difference of single runs has its standard "
        "error over the test images, by group where they have groups, and no verdict. Bold: the lowest of its block, "
        "and what is within the error of it. "
        f"Differences are of the {weights} weights. Samples that are not finite are counted at temperature 1.",
    ]
    if len(names) > 1:
        paragraphs.append(
            f"These runs are of {len(names)} settings ({'; '.join(names.values())}), which differ in images, split, "
            "bits or K. Their numbers cannot be compared, and stand in a table each."
        )
    if collection.problems:
        paragraphs.append(f"{_plural(len(collection.problems), 'problem')} met while reading: see “{MISSING}”.")
    return Section("Summary", paragraphs)


def _results(comparison: Comparison, name: str, weights: Weights, times: SamplingTimes | None, stem: str) -> Section:
    key = [_key(comparison)] if any(title != row.mixing for row, title in comparison.titles.items()) else []
    tables = [_scores(comparison, weights, times), *key, _evaluations(comparison), _codecs(comparison)]
    curves = training_curves(comparison, stem)
    return Section(
        f"Results on {name}",
        paragraphs=[comparison.setting.describe()],
        tables=[table for table in tables if table.header],
        figures=[*([curves] if curves else []), *_samples(comparison, stem)],
    )


def _scores(comparison: Comparison, weights: Weights, times: SamplingTimes | None) -> Table:
    """The main table."""
    kinds: tuple[Weights, ...] = get_args(Weights)
    header = [
        "configuration",
        "width",
        "parameters",
        "runs",
        *(f"bits/dim, {kind} weights, K = {comparison.setting.num_noise_samples}" for kind in kinds),
        f"difference to {BASELINE}, same seeds, {weights}",
        *(f"samples not finite, {kind}" for kind in kinds),
        "device-hours per run",
        "GFLOPs per image and step",
        "ms per sample",
        "the paper, raw weights, K = 1",
    ]
    groups = {
        block.title: [
            [
                comparison.titles[row],
                _show(row.width),
                _show(row.first_result("num_parameters"), ","),
                _how_many(row),
                *scores,
                _difference(block, row, weights),
                *(_not_finite(row, kind) for kind in kinds),
                _figure(_mean([run.result("device_hours") for run in row.finished])),
                _figure(row.first_result("flops_per_image"), 1e9),
                _figure(times.milliseconds.get(row) if times else None),
                "; ".join(score.show() for score in scores_beside(row)) or NONE,
            ]
            for row, *scores in zip(block.rows, *(_best_in_bold(block, kind) for kind in kinds), strict=True)
        ]
        for block in comparison.blocks
    }
    captions = []
    if times and times.milliseconds:
        captions.append(
            f"Times: {times.batch_size} samples at temperature 0.7, the fastest of several runs; {times.machine}."
        )
    if any(scores_beside(row) for row in comparison.rows):
        captions.append("The paper: test images, the checkpoint with the best test score; it has no validation split.")
    return Table.of(header, groups, " ".join(captions))


def _best_in_bold(block: Block, weights: Weights) -> list[str]:
    estimates = [row.estimate(weights) for row in block.rows]
    texts = [NONE if estimate is None else estimate.show() for estimate in estimates]
    return [
        Bold(text) if is_best and block.is_comparable else text
        for text, is_best in zip(texts, best(estimates), strict=True)
    ]


def _how_many(row: Row) -> str:
    unfinished = Counter(run.status.value for run in row.runs if run.status is not Status.FINISHED)
    return " + ".join([str(len(row.finished)), *(f"{count} {status}" for status, count in unfinished.items())])


def _not_finite(row: Row, weights: Weights) -> str:
    """How many samples of all of a row's runs together overflow."""
    counts = [(run.result(NOT_FINITE[weights]), run.result("num_samples")) for run in row.finished]
    known = [(lost, drawn) for lost, drawn in counts if lost is not None and drawn is not None]
    return f"{sum(lost for lost, _ in known):,} of {sum(drawn for _, drawn in known):,}" if known else NONE


def _difference(block: Block, row: Row, weights: Weights) -> str:
    """Over the seeds that a row and its block's baseline share, which see the same images in the same order.

    A single seed has no spread: it has the standard error of the difference over the test images instead.
    """
    if block.baseline is None or row is block.baseline:
        return NONE
    ours, theirs = row.scores(weights), block.baseline.scores(weights)
    seeds = sorted(ours.keys() & theirs.keys())
    difference = Estimate.of([ours[seed] - theirs[seed] for seed in seeds])
    text = NONE if difference is None else difference.show("+") + difference.verdict
    if len(seeds) == 1:
        a, b = (next(run.test_scores for run in each.finished if run.seed in seeds) for each in (row, block.baseline))
        if {"group", weights} <= a.keys() & b.keys() and torch.equal(a["group"], b["group"]):
            text += f" (± {Score.of(a[weights] - b[weights], a['group']).standard_error:.{DIGITS}f} over images)"
    return text


def _show(value: Any, style: str = "") -> str:
    return NONE if value is None else format(value, style)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _figure(value: float | None, unit: float = 1.0) -> str:
    return NONE if value is None else three_digits(value / unit)


def _key(comparison: Comparison) -> Table:
    """What the names of the configurations stand for."""
    header = ["configuration", "mixing layer", "settings", "folder"]
    lines = [
        [title, NONE if row.mixing in title else row.mixing, comparison.unusual[row] or "as most", row.folders]
        for row, title in comparison.titles.items()
    ]
    most = f" Most have: {comparison.usual}." if comparison.usual else ""
    text = "What each configuration is. Settings stand here where they differ from those of most; seeds, paths and "
    text += f"loggers aside.{most}"
    return Table.of(header, {"": lines}, text, num_left=len(header))


def _evaluations(comparison: Comparison) -> Table:
    """What ``evaluate.py`` found for the same images, a column for each kind of weights, bound and noise."""
    setting = comparison.setting
    found: dict[tuple[str, int, int], dict[Row, list[float]]] = {}
    for row in comparison.rows:
        for one in (one for run in row.runs for one in run.evaluations):
            if (one.data, one.split, one.num_images) == (setting.data, setting.split, setting.num_images):
                kind = (one.weights, one.num_noise_samples, one.seed)
                found.setdefault(kind, {}).setdefault(row, []).append(one.bits_per_dim)
    kinds = sorted(found)
    header = [
        "configuration",
        *(f"bits/dim, {weights} weights, K = {k}, noise seed {seed}" for weights, k, seed in kinds),
    ]
    lines = []
    for row in comparison.rows:
        estimates = [Estimate.of(found[kind].get(row, [])) for kind in kinds]
        if any(estimates):
            shown = [NONE if one is None else f"{one.show()} (n = {one.num})" for one in estimates]
            lines.append([comparison.titles[row], *shown])
    caption = "Evaluations of the best checkpoints on the same images, from evaluate.py; n: runs that have one."
    return Table.of(header, {"": lines}, caption)


def _codecs(comparison: Comparison) -> Table:
    lines = []
    for codec, title in {"png": "PNG", "webp": "lossless WebP"}.items():
        values = [row.first_result(f"test/{codec}_bits_per_dim") for row in comparison.rows]
        lines += [[title, f"{value:.{DIGITS}f}"] for value in values if value is not None][:1]
    caption = "Lossless codecs on the same images, a file for each, headers included (of more than 2,000 images, on as "
    caption += "many evenly spaced ones). They code the images as they are; the flows' figures are a bound."
    return Table.of(["codec", "bits/dim"], {"": lines}, caption)


def _samples(comparison: Comparison, stem: str) -> list[Figure]:
    """One sheet for each row, of its first run that has one."""
    sheets = []
    for number, row in enumerate(comparison.rows, 1):
        run = next((run for run in row.runs if run.picture is not None), None)
        if run is None or run.picture is None:
            continue
        if run.picture.name == FINAL_SAMPLES:
            what = "best checkpoint, raw weights, temperatures 1 and 0.7"
        else:
            what = f"while training, {run.picture.stem.replace('=', ' ')}"
        title = comparison.titles[row]
        sheets.append(
            Figure(
                f"{stem}-samples-{number}.png",
                run.picture.read_bytes(),
                alt=f"Samples: {title}",
                caption=f"{title}. Seed {run.seed}, {what}.",
            )
        )
    return sheets


def _missing(collection: Collection, comparisons: Sequence[Comparison]) -> Section:
    rows = [row for comparison in comparisons for row in comparison.rows]
    unfinished = sum(run.status is not Status.FINISHED for row in rows for run in row.runs)
    paragraphs = [f"{_plural(unfinished, 'unfinished run')}: see “{EVERY_RUN}”."] if unfinished else []
    problems = [[problem.where, problem.what] for problem in collection.problems]
    if not paragraphs and not problems:
        paragraphs = ["Nothing: every run has finished, and all could be read."]
    table = Table.of(["where", "problem"], {"": problems}, num_left=2)
    return Section(MISSING, paragraphs, [table] if problems else [])


def _every_run(collection: Collection, names: Mapping[Comparison, str]) -> Section:
    lines = [
        [
            name,
            comparison.titles[row],
            str(run.seed),
            run.name,
            run.status.value,
            _progress(run),
            _show(run.best_validation, f".{DIGITS}f"),
            *(_score(run, score) for score in SCORES.values()),
            NONE if (seconds := run.result("seconds")) is None else duration(seconds),
            *_cost(run),
            *(entry or NONE for entry in (run.started, run.commit, run.host)),
        ]
        for comparison, name in names.items()
        for row in comparison.rows
        for run in row.runs
    ]
    header = [
        "data",
        "configuration",
        "seed",
        "folder",
        "state",
        "epochs",
        "best validation bits/dim, raw",
        "test bits/dim, raw",
        "test bits/dim, averaged",
        "time",
        "device-hours",
        "images/s in training",
        "peak memory, GiB",
        "GFLOPs per image and step",
        "devices",
        "started",
        "commit",
        "host",
    ]
    text = (
        "Test bits/dim ± standard error over the images of one run, which is not the spread over seeds; by group where "
        "images of one group are alike, such as the neighbours in a photograph; K as above, "
        "1 in validation. Time is the training's, with validations and with what it took before it was resumed; memory "
        "is of the first device. FLOPs are those of matrix products and convolutions, forward and backward. "
        f"Folders are below {collection.top}."
    )
    return Section(EVERY_RUN, [text], [Table.of(header, {"": lines}, num_left=5)])


def _cost(run: Run) -> list[str]:
    results = run.results or {}
    return [
        _figure(run.result("device_hours")),
        _figure(run.result("images_per_second")),
        _figure(run.result("peak_memory_bytes"), 2**30),
        _figure(run.result("flops_per_image"), 1e9),
        f"{results['num_devices']} x {results['device']}" if "device" in results else NONE,
    ]


def _progress(run: Run) -> str:
    planned = run.config["trainer"].get("max_epochs")
    return f"{run.num_epochs} of {planned}" if isinstance(planned, int) and planned > 0 else str(run.num_epochs)


def _score(run: Run, name: str) -> str:
    value, error = run.result(name), run.result(f"{name}_standard_error")
    if value is None:
        return NONE
    by_group = run.result("num_groups") not in (None, run.result("num_images"))
    return f"{value:.{DIGITS}f}" + ("" if error is None else f" ± {error:.{DIGITS}f}{' by group' * by_group}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
