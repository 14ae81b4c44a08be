"""What a report says: from compared runs to sections of text, tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.console import duration
from flows.reporting.collect import NOT_FINITE, Collection, Run, Status
from flows.reporting.comparison import BASELINE, Block, Comparison, Row, differing_keys
from flows.reporting.figures import SamplingTimes, accuracy_against_time, training_curves
from flows.reporting.page import Cell, Figure, Group, Report, Section, Table
from flows.reporting.paper import orders_of, paper_sampling, paper_scores, scores_beside
from flows.reporting.statistics import DIGITS, Estimate, agreement, best, order
from flows.runs.checkpoint import Weights
from flows.runs.layout import FINAL_SAMPLES

NONE = "-"
"""In a table: there is no such figure."""

MISSING = "What is missing"


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
        weights: which weights' scores decide where one is needed: for differences, orders and plots.
        times: sampling times, where they were measured.
    """
    names = _names(comparisons)
    sections = [_summary(collection, names, weights)]
    for number, comparison in enumerate(comparisons, 1):
        sections.append(_results(comparison, names[comparison], weights, times.get(comparison), f"{number}"))
    sections += [
        _missing(collection, comparisons),
        _configurations(comparisons, names),
        _every_run(collection, comparisons, names),
        _paper(comparisons),
    ]
    return Report("Invertible convolutions: report", _counted(comparisons), sections)


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
        "an image. Each is the mean over seeds ± the sample standard deviation (n - 1); a single run has none. Bold: "
        f"the lowest of its block, to {DIGITS} decimals, ties included. Differences, orders and plots take the "
        f"{weights} weights.",
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
    curves = training_curves(comparison, stem)
    trade_off = accuracy_against_time(comparison, times, weights, stem) if times else None
    codecs = _codecs(comparison)
    orders = _orders(comparison, weights)
    notes = []
    if not any(scores_beside(row) for row in comparison.rows):
        notes.append(
            f"The paper has no figure for these configurations on {comparison.setting.data}. Its own are of other "
            "images or models, and not comparable; what can be set beside each other is the order of the layers."
        )
    else:
        notes.append(
            "The paper's figures: raw weights, K = 1, test images, and the checkpoint with the best test score; it has "
            "no validation split."
        )
    return Section(
        f"Results on {name}",
        paragraphs=[comparison.setting.describe()],
        tables=[_scores(comparison, weights), *filter(None, [_evaluations(comparison), codecs, orders])],
        notes=notes,
        figures=[figure for figure in (curves, trade_off) if figure is not None],
        sheets=_samples(comparison, stem),
    )


def _scores(comparison: Comparison, weights: Weights) -> Table:
    """The main table; columns that would be empty are left out."""
    rows = comparison.rows
    kinds: list[Weights] = [kind for kind in ("raw", "averaged") if any(row.scores(kind) for row in rows)]
    with_difference = any(block.baseline for block in comparison.blocks)
    noise = f"K = {comparison.setting.num_noise_samples}"
    header = ["mixing layer", "width", "parameters", "runs", *(f"bits/dim, {kind} weights, {noise}" for kind in kinds)]
    if with_difference:
        header.append(f"difference to {BASELINE}, same seeds, {weights}")
    unsafe = {row: [_not_finite(row, kind) for kind in kinds] for row in rows}
    with_unsafe = any(any(cells) for cells in unsafe.values())
    header += [f"samples not finite at temperature 1, {kind} weights" for kind in kinds if with_unsafe]
    beside = {row: "; ".join(f"{score.show()} (table {score.table})" for score in scores_beside(row)) for row in rows}
    header += ["the paper, raw weights, K = 1"] if any(beside.values()) else []
    groups = []
    for block in comparison.blocks:
        estimates = {kind: [row.estimate(kind) for row in block.rows] for kind in kinds}
        lines = []
        for number, row in enumerate(block.rows):
            parameters = row.first_result("num_parameters")
            cells = [
                Cell(row.mixing if len(comparison.blocks) > 1 else comparison.titles[row]),
                Cell(NONE if row.width is None else str(row.width)),
                Cell(NONE if parameters is None else f"{parameters:,.0f}"),
                Cell(_how_many(row)),
            ]
            for kind in kinds:
                cells.append(Cell(_show(estimates[kind][number]), best(estimates[kind])[number]))
            if with_difference:
                cells.append(Cell(_show(_difference(block, row, weights), "+")))
            cells += [Cell(found or NONE) for found in unsafe[row] if with_unsafe]
            cells += [Cell(beside[row] or NONE)] if any(beside.values()) else []
            lines.append(cells)
        groups.append(Group(block.title, lines))
    caption = f"Blocks differ also in {', '.join(comparison.untold)}." if comparison.untold else ""
    return Table(header, groups, caption)


def _how_many(row: Row) -> str:
    unfinished = Counter(run.status.value for run in row.runs if run.status is not Status.FINISHED)
    return " + ".join([str(len(row.finished)), *(f"{count} {status}" for status, count in unfinished.items())])


def _not_finite(row: Row, weights: Weights) -> str | None:
    """How many samples of all of a row's runs together overflow; ``None`` if none of them has looked."""
    counts = [(run.result(NOT_FINITE[weights]), run.result("num_samples")) for run in row.finished]
    known = [(lost, drawn) for lost, drawn in counts if lost is not None and drawn is not None]
    return f"{sum(lost for lost, _ in known):,} of {sum(drawn for _, drawn in known):,}" if known else None


def _difference(block: Block, row: Row, weights: Weights) -> Estimate | None:
    """Over the seeds that a row and its block's baseline share, which see the same images in the same order."""
    if block.baseline is None or row is block.baseline:
        return None
    ours, theirs = row.scores(weights), block.baseline.scores(weights)
    return Estimate.of([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def _show(estimate: Estimate | None, sign: str = "") -> str:
    return NONE if estimate is None else estimate.show(sign=sign)


def _evaluations(comparison: Comparison) -> Table | None:
    """What ``evaluate.py`` found for the same images, a column for each kind of weights, bound and noise."""
    setting = comparison.setting
    columns: dict[tuple[str, int, int], dict[Row, list[float]]] = {}
    for row in comparison.rows:
        for run in row.runs:
            for found in run.evaluations:
                if (found.data, found.split, found.num_images) == (setting.data, setting.split, setting.num_images):
                    kind = (found.weights, found.num_noise_samples, found.seed)
                    columns.setdefault(kind, {}).setdefault(row, []).append(found.bits_per_dim)
    if not columns:
        return None
    kinds = sorted(columns)
    header = [
        "configuration",
        *(f"bits/dim, {weights} weights, K = {k}, noise seed {seed}" for weights, k, seed in kinds),
    ]
    lines = []
    for row in comparison.rows:
        estimates = [Estimate.of(columns[kind].get(row, [])) for kind in kinds]
        if any(estimates):
            shown = [NONE if one is None else f"{one.show()} (n = {one.num})" for one in estimates]
            lines.append([comparison.titles[row], *shown])
    caption = "Evaluations of the best checkpoints on the same images, from evaluate.py; n: runs that have one."
    return Table.of(header, lines, caption)


def _codecs(comparison: Comparison) -> Table | None:
    titles = {"png": "PNG", "webp": "lossless WebP"}
    lines = []
    for codec, title in titles.items():
        values = [row.first_result(f"test/{codec}_bits_per_dim") for row in comparison.rows]
        value = next((value for value in values if value is not None), None)
        if value is not None:
            lines.append([title, f"{value:.{DIGITS}f}"])
    caption = "Lossless codecs on the same images, a file for each, headers included (of more than 2,000 images, on as "
    caption += "many evenly spaced ones). They code the images as they are; the flows' figures are a bound."
    return Table.of(["codec", "bits/dim"], lines, caption) if lines else None


def _orders(comparison: Comparison, weights: Weights) -> Table | None:
    """The paper's order of the layers beside ours, block by block."""
    lines = []
    for block in comparison.blocks:
        estimates = {row.mixing: row.estimate(weights) for row in block.rows}
        means = {mixing: estimate.mean for mixing, estimate in estimates.items() if estimate is not None}
        for expected in orders_of(means):
            named = {mixing: means[mixing] for level in expected.levels for mixing in level}
            here = order(named, DIGITS)
            verdict = agreement(here, expected.levels)
            lines.append(
                [block.title or NONE, _chain(here), _chain(expected.levels), verdict, "; ".join(expected.sources)]
            )
    header = [
        "rows",
        f"order here ({weights} weights)",
        "the paper's order",
        "borne out",
        "where in the paper, bits/dim",
    ]
    caption = "Lowest bits/dim first, by the digits shown; whether a gap is more than noise, the differences above say."
    return Table.of(header, lines, caption, num_left=len(header)) if lines else None


def _chain(levels: list[list[str]]) -> str:
    return " < ".join(" = ".join(level) for level in levels)


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
    unfinished = [
        [comparison.titles[row], run.name, run.status.value, _progress(run), _best_so_far(run), _silence(run)]
        for comparison in comparisons
        for row in comparison.rows
        for run in row.runs
        if run.status is not Status.FINISHED
    ]
    header = ["configuration", "run", "state", "epochs", "best validation bits/dim, raw, K = 1", "last written"]
    caption = "A run without results that has written something within the last 15 minutes is taken to be running."
    problems = [[problem.where, problem.what] for problem in collection.problems]
    notes = [*_missing_seeds(comparisons)]
    complete = not (unfinished or problems or notes)
    return Section(
        MISSING,
        paragraphs=["Nothing: every run has finished, and every configuration has the same seeds."] if complete else [],
        notes=notes,
        tables=[
            *([Table.of(header, unfinished, caption, num_left=3)] if unfinished else []),
            *([Table.of(["where", "problem"], problems, num_left=2)] if problems else []),
        ],
    )


def _missing_seeds(comparisons: Sequence[Comparison]) -> list[str]:
    """Rows that lack finished seeds which other rows of their comparison have."""
    notes = []
    for comparison in comparisons:
        seeds = {run.seed for row in comparison.rows for run in row.finished}
        for row in comparison.rows:
            lacking = sorted(seeds - {run.seed for run in row.finished})
            if lacking:
                which = "seed" if len(lacking) == 1 else "seeds"
                numbers = ", ".join(map(str, lacking))
                title = f"{comparison.setting.data}, {comparison.titles[row]}"
                notes.append(f"{title}: no finished run with {which} {numbers}, which others have.")
    return notes


def _progress(run: Run) -> str:
    done = 0 if run.last_epoch is None else run.last_epoch + 1
    planned = run.config["trainer"].get("max_epochs")
    return f"{done} of {planned}" if isinstance(planned, int) and planned > 0 else str(done)


def _best_so_far(run: Run) -> str:
    return NONE if run.best_validation is None else f"{run.best_validation:.{DIGITS}f}"


def _silence(run: Run) -> str:
    return f"{duration(max(0.0, 60 * run.minutes_silent))} ago"


def _configurations(comparisons: Sequence[Comparison], names: Mapping[Comparison, str]) -> Section:
    rows = [(comparison, row) for comparison in comparisons for row in comparison.rows]
    keys = differing_keys([row for _, row in rows])
    lines = [
        [names[comparison], comparison.titles[row], *(_value(row, key) for key in keys)] for comparison, row in rows
    ]
    text = "The settings in which the configurations differ, as they were resolved; seeds, paths and loggers aside."
    if not keys:
        return Section("Differences between configurations", ["There are none: all runs have one configuration."])
    header = ["data", "configuration", *keys]
    return Section("Differences between configurations", [text], [Table.of(header, lines, num_left=len(header))])


def _value(row: Row, key: str) -> str:
    if key not in row.config:
        return NONE
    value = row.config[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _every_run(collection: Collection, comparisons: Sequence[Comparison], names: Mapping[Comparison, str]) -> Section:
    lines = []
    for comparison in comparisons:
        noise = f"K = {comparison.setting.num_noise_samples}"
        for row in comparison.rows:
            for run in row.runs:
                scores = [_score(run, "test/bits_per_dim"), _score(run, "test/bits_per_dim_averaged")]
                seconds = run.result("seconds")
                time = NONE if seconds is None else duration(seconds)
                which = [names[comparison], comparison.titles[row], str(run.seed), run.name]
                lines.append([*which, run.status.value, noise, *scores, time])
    header = ["data", "configuration", "seed", "folder", "state", "bound", "raw weights", "averaged weights", "time"]
    text = (
        "Test bits/dim ± standard error over the images of one run, which is not the spread over seeds. Folders are "
        f"below {collection.top}."
    )
    return Section("Every run", [text], [Table.of(header, lines, num_left=6)])


def _score(run: Run, name: str) -> str:
    value, error = run.result(name), run.result(f"{name}_standard_error")
    if value is None:
        return NONE
    return f"{value:.{DIGITS}f}" + ("" if error is None else f" ± {error:.{DIGITS}f}")


def _paper(comparisons: Sequence[Comparison]) -> Section:
    rows = [row for comparison in comparisons for row in comparison.rows]
    lines = []
    for score in paper_scores():
        ours = [row for row in rows if score.belongs_to(row)]
        found = "; ".join(
            f"{estimate.show()} (n = {estimate.num}, {row.setting.data})"
            for row in ours
            if (estimate := row.estimate("raw")) is not None
        )
        lines.append([f"{score.table}", score.data_name, score.mixing, score.architecture, score.show(), found or NONE])
    header = ["table", "data", "mixing layer", "architecture", "the paper, raw, K = 1", "here, raw, K = 1"]
    text = (
        "Tables 2, 3, 4 and 6, bits/dim, and the runs of the same data and architecture among these. The paper reports "
        "the checkpoint with the best test score; runs with the holdout splits select on validation images instead."
    )
    sampling = [
        [line.mixing, f"{line.mean:.2f}", f"{line.naive:g}", f"{line.accelerated:g}"] for line in paper_sampling()
    ]
    table5 = Table.of(
        ["table 5", "bits/dim", "naive, ms an image", "accelerated, ms an image"],
        sampling,
        "Sampling from the models of table 3, CIFAR10; hardware and batch size are not stated.",
    )
    return Section("The paper's tables", [text], [Table.of(header, lines, num_left=4), table5])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
