"""Train small flows with fifteen mixing layers and compare them; docs/RESULTS.md has what this prints.

    python -m benchmarks.comparison
    python -m benchmarks.comparison --folder sweeps/comparison --jobs 4 data.batch_size=16

1. Each layer is trained on photos, seed 0, with four learning rates. The best on validation is its own from then on.
2. Each is trained on photos and hubble with three other seeds, at as many parameters as a 1x1 at width 64.
3. The same at equal time: at the width where a step takes as long as the 1x1's. The five best layers of stage 1 that
   have such a width take part.
4. Steps of training and samples of the trained flows are timed, and the tables are printed as Markdown.

All layers share the rest: L 2, D 2, ``recipe=laptop``, bounded couplings. The stages are sweeps of ``train.py`` below
one folder: the same command goes on where it was stopped. More overrides apply to every run.

Differences to the 1x1 are paired: the same seed, images and noise. The first error is the standard error over seeds,
the second that over blocks of held-out images, of the mean over seeds.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.program import new_parser, run, say, show_machine
from benchmarks.training import step_of
from flows import InputError, load_flow
from flows.files import atomic_write
from flows.home import HOME
from flows.measures.bits_per_dim import Score
from flows.measures.budget import width_of_equal_time
from flows.measures.timing import fastest_of_many
from flows.models.base import DensityModel
from flows.reporting.collect import Run, collect
from flows.runs.checkpoint import build_flow

CPU = torch.device("cpu")
BASELINE, WIDTH = "conv1x1", 64

LAYERS = {
    BASELINE: [f"mixing={BASELINE}"],
    "conv1x1_cd": ["mixing=conv1x1_cd"],
    "conv1x1_cd_identity": ["mixing=conv1x1_cd", "mixing.parametrization.start=identity"],
    "conv1x1_expm": ["mixing=conv1x1_expm"],
    "conv1x1_orthogonal": ["mixing=conv1x1_orthogonal"],
    "conv1x1_svd": ["mixing=conv1x1_svd"],
    "emerging": ["mixing=emerging"],
    "inverted": ["mixing=inverted"],
    "periodic": ["mixing=periodic"],
    "periodic_reflect": ["mixing=periodic", "mixing.boundary=reflect"],
    "convexp": ["mixing=convexp"],
    "finc": ["mixing=finc"],
    "woodbury": ["mixing=woodbury"],
    "butterfly": ["mixing=butterfly"],
    "macow": ["mixing=macow", "mixing.hidden_channels=16"],  # its usual 96 have more parameters than the whole budget
}
"""The overrides of each, by its name in the tables."""

SHARED = ["recipe=laptop", "model.num_levels=2", "model.num_steps=2", "trainer=cpu"]
LEAN = ["callbacks.averaging=null", "callbacks.samples=null", "callbacks.latents=null"]
"""Without what the tables do not show."""

EQUAL_PARAMETERS = [f"budget={BASELINE}@{WIDTH}", "model.hidden_channels=match"]
RATES = (6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
DATA = ("photos", "hubble")
SEEDS = (1, 2, 3)
NUM_EQUAL_TIME = 5
TOLERANCE = 0.02
"""Of the ratio of two times that are to be equal."""

SECONDS = 20.0
"""For each column of times; a third of it for the ratio of two steps at one width."""


@dataclass(frozen=True)
class Stages:
    """The stages, each below one folder.

    Args:
        folder: for everything.
        layers: names out of :data:`LAYERS`.
        num_jobs: runs at a time, which share the cores.
        overrides: further ones, of every run.
    """

    folder: Path
    layers: Sequence[str]
    num_jobs: int
    overrides: Sequence[str]

    @property
    def num_threads(self) -> int:
        """Of each run, and of what is timed."""
        return max(1, (os.cpu_count() or 1) // self.num_jobs)

    def train(self, stage: str, swept: Mapping[str, Sequence[str]]) -> None:
        """A sweep for each layer, with overrides of its own."""
        with ThreadPoolExecutor(self.num_jobs) as pool:
            list(pool.map(partial(self._sweep, stage), swept, swept.values()))

    def _sweep(self, stage: str, name: str, swept: Sequence[str]) -> None:
        folder = self.folder / stage / name
        folder.mkdir(parents=True, exist_ok=True)
        overrides = [*LAYERS[name], *SHARED, *LEAN, *self.overrides, *swept, f"run_dir={folder}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.num_threads)}
        say(f"{stage}: {name} ...")
        with open(folder / "sweep.log", "ab") as log:
            command = [sys.executable, "train.py", "-m", *overrides]
            ended = subprocess.run(command, cwd=HOME, env=environment, stdout=log, stderr=log, check=False)
        if ended.returncode:
            say(f"{stage}: {name} ended with {ended.returncode}; see {folder / 'sweep.log'}")

    def runs(self, stage: str, name: str) -> list[Run]:
        """The finished runs of a layer."""
        found = collect([str(self.folder / stage / name)]).runs
        return [run for run in found if run.results is not None]

    def rates(self) -> dict[str, dict[float, float]]:
        """Stage 1: bits/dim on validation by learning rate, the best first; one at which it diverged is not there."""
        swept = ["data=photos", "seed=0", f"optimizer.lr={','.join(map(str, RATES))}", *EQUAL_PARAMETERS]
        self.train("rates", dict.fromkeys(self.layers, swept))
        found = {}
        for name in self.layers:
            runs = self.runs("rates", name)
            scores = {run.config["optimizer"]["lr"]: run.result("val/bits_per_dim") or math.inf for run in runs}
            if not scores:
                raise InputError(f"{name} was trained with none of the rates: see {self.folder / 'rates' / name}")
            found[name] = dict(sorted(scores.items(), key=lambda item: item[1]))
        return found

    def final(self, stage: str, model: Mapping[str, Sequence[str]], rates: Mapping[str, Mapping[float, float]]) -> None:
        """Stages 2 and 3: the runs that count, at the best rate of each layer.

        Raises:
            InputError: a run is missing, which would make one mean of fewer seeds than the others.
        """
        seeds = [f"data={','.join(DATA)}", f"seed={','.join(map(str, SEEDS))}"]
        swept = {name: [*seeds, f"optimizer.lr={next(iter(rates[name]))}", *own] for name, own in model.items()}
        self.train(stage, swept)
        for name in model:
            missing = len(DATA) * len(SEEDS) - len(self.runs(stage, name))
            if missing:
                raise InputError(
                    f"{missing} of the runs in {self.folder / stage / name} did not finish: sweep.log there says why, "
                    "and the same command goes on"
                )

    def widths(self, names: Sequence[str]) -> dict[str, int]:
        """Stage 3: the widths of equal time of the first layers that have one. They are measured once.

        A layer that takes longer even at width 1 has none.
        """
        path = self.folder / "widths.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        found: dict[str, int] = {}
        for name in names:
            if len(found) == NUM_EQUAL_TIME:
                break
            if name not in known:
                known[name] = width_of_equal_time(partial(self._ratio_to_baseline, name), WIDTH, TOLERANCE)
                with atomic_write(path) as file:
                    file.write(json.dumps(known, indent=2).encode())
            if known[name]:
                found[name] = known[name]
        return found

    def _ratio_to_baseline(self, name: str, width: int) -> float:
        """Of the time of a step."""
        say(f"{name} at width {width} ...")
        this, baseline = (self.runs("rates", layer)[0].config for layer in (name, BASELINE))
        steps = {"this": _step_of(this, width), "baseline": _step_of(baseline)}
        best = fastest_of_many(steps, seconds=SECONDS / 3, device=CPU)
        return best["this"] / best["baseline"]


def _step_of(config: dict[str, Any], width: int | None = None) -> Callable[[], None]:
    """One step of training of the model that a run's configuration describes, perhaps of another width."""
    model = config["model"] if width is None else {**config["model"], "hidden_channels": width}
    torch.manual_seed(0)
    flow = build_flow({"model": model})
    images = torch.randint(0, 256, (config["data"]["batch_size"], *flow.image_shape), dtype=torch.uint8)
    flow.initialize(images)
    return step_of(flow, images, "exact")


def difference(runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Of test bits/dim on the same seeds and images, with its standard errors over seeds and over blocks of images."""
    theirs = {run.seed: run.test_scores for run in baseline}
    pairs = [(run.test_scores, theirs[run.seed]) for run in runs if run.seed in theirs]
    if not pairs:
        return "-"
    images = torch.stack([ours["raw"] - others["raw"] for ours, others in pairs])
    blocks = Score.of(images.mean(dim=0), pairs[0][0]["group"]).standard_error
    seeds = images.mean(dim=1).std() / math.sqrt(len(images)) if len(images) > 1 else math.nan
    return f"{images.mean():+.3f} ± {seeds:.3f} ± {blocks:.3f}"


def scores(stages: Stages, stage: str, names: Sequence[str]) -> list[list[str]]:
    """A row for each layer: its size, and its test bits/dim for each data set beside the difference to the 1x1."""
    baseline = stages.runs("parameters", BASELINE)
    rows = []
    for name in names:
        runs = stages.runs(stage, name)
        row = [name, str(runs[0].config["model"]["hidden_channels"]), f"{runs[0].result('num_parameters'):,}"]
        for data in DATA:
            ours = [run for run in runs if run.config["data"]["collection"] == data]
            theirs = [run for run in baseline if run.config["data"]["collection"] == data]
            mean = statistics.fmean(run.result("test/bits_per_dim") or math.nan for run in ours)
            row += [f"{mean:.3f}", "-" if name == BASELINE else difference(ours, theirs)]
        rows.append(row)
    return rows


@torch.inference_mode()
def _seconds_of_samples(flows: Mapping[str, DensityModel], batch: int) -> dict[str, float]:
    latents = next(iter(flows.values())).sample_latents(batch, 1.0, torch.Generator().manual_seed(0))
    candidates = {name: partial(flow.decode, latents) for name, flow in flows.items()}
    return fastest_of_many(candidates, seconds=SECONDS, device=CPU)


def costs(stages: Stages) -> list[list[str]]:
    """A row for each layer: times of a step and of samples, and the worst of all its runs' inverses."""
    runs = {name: stages.runs("parameters", name) for name in stages.layers}
    flows = {name: load_flow(some[0].folder) for name, some in runs.items()}
    say("times of steps and samples ...")
    steps = fastest_of_many(
        {name: _step_of(some[0].config) for name, some in runs.items()}, seconds=SECONDS, device=CPU
    )
    samples = {batch: _seconds_of_samples(flows, batch) for batch in (1, 64)}
    rows = []
    for name, some in runs.items():
        gain, error, unusual = (
            max(run.curves[f"val/{metric}"].values[-1] for run in some)
            for metric in ("inverse_gain", "round_trip_error", "round_trip_error_unusual")
        )
        lost = sum(run.result("samples_not_finite") or 0 for run in some)
        drawn = sum(run.result("num_samples") or 0 for run in some)
        times = [f"{1000 * steps[name]:.1f}", *(f"{1000 * samples[batch][name] / batch:.2f}" for batch in samples)]
        rows.append([name, *times, f"{gain:.2f}", f"{error:.1e}", f"{unusual:.1e}", f"{lost:g} of {drawn:,}"])
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned left and the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train what is missing, print."""
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("sweeps/comparison"))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="with conv1x1 among them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; default: one for each core")
    parser.add_argument("overrides", nargs="*", help="of every run, besides those that it has")
    options = parser.parse_args(arguments)
    if BASELINE not in options.layers:
        raise InputError(f"the others are compared with {BASELINE}: add it to --layers")
    stages = Stages(options.folder.resolve(), options.layers, options.jobs, options.overrides)

    rates = stages.rates()
    others = sorted((name for name in rates if name != BASELINE), key=lambda name: min(rates[name].values()))
    stages.final("parameters", dict.fromkeys(rates, EQUAL_PARAMETERS), rates)
    torch.set_num_threads(stages.num_threads)
    widths = stages.widths(others)
    stages.final("time", {name: [f"model.hidden_channels={width}"] for name, width in widths.items()}, rates)

    machine = show_machine(CPU)
    of_rates = [[name, *(f"{found.get(rate, math.nan):.3f}" for rate in RATES)] for name, found in rates.items()]
    of_scores = ["layer", "width", "parameters", *(text for data in DATA for text in (data, "difference"))]
    of_costs = [
        "layer",
        "ms a step",
        "ms a sample, batch 1",
        "batch 64",
        "gain",
        "error",
        "error, unusual",
        "not finite",
    ]
    tables = {
        "Validation bits/dim by learning rate, photos, seed 0": [
            ["layer", *(f"{rate:g}" for rate in RATES)],
            *of_rates,
        ],
        "Test bits/dim at equal parameters": [of_scores, *scores(stages, "parameters", list(rates))],
        "Test bits/dim at equal time of a step": [of_scores, *scores(stages, "time", list(widths))],
        "Times, and the inverses of all runs at worst (errors in grey levels)": [of_costs, *costs(stages)],
    }
    for title, (header, *rows) in tables.items():
        print(title, markdown(header, rows), sep="\n\n")
    if options.output:
        with atomic_write(options.output) as file:
            file.write((json.dumps({"machine": machine, **tables}, indent=2) + "\n").encode())


if __name__ == "__main__":
    run(main)
