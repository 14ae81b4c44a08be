"""The report: what is read from run folders in any state, what is compared, and the page that comes of it."""

import json
import re
import shutil
import statistics
import subprocess
from socket import gethostname

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from support import configs
from support.configs import compose
from support.forks import run_forked

from flows import InputError
from flows.config.building import is_node, nodes
from flows.reporting import Curve, SamplingTimes, collect, compare, make_report, write_report
from flows.reporting.comparison import LAYERS, comparable, mixing_name
from flows.reporting.contents import EVERY_RUN, MISSING
from flows.reporting.figures import training_curves
from flows.reporting.page import Bold, as_markdown
from flows.reporting.paper import paper_scores
from flows.reporting.statistics import Estimate, best
from flows.runs.claim import run_folder_lock

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

CSV = "metrics/version_0/metrics.csv"
MIXINGS = {"1x1": compose("mixing=conv1x1")["mixing"], "emerging": compose("mixing=emerging")["mixing"]}
BITS = {bits: {"_target_": "flows.models.dequantizers.UniformDequantizer", "num_bits": bits} for bits in (5, 8)}


def write_run(folder, mixing="1x1", seed=1, score=3.5, *, data="photos", finished=True, config=(), results=(), **model):
    """A run folder as train.py leaves it, without checkpoints. ``config``: further dotted keys, set to these values."""
    folder.mkdir(parents=True)
    model = {"num_levels": 2, "num_steps": 4, "hidden_channels": 64, "dequantizer": BITS[8]} | model
    content = OmegaConf.create(
        {
            "data": {"_target_": "datamodules.X", "collection": data, "batch_size": 32},
            "model": {"_target_": "flows.Flow", "mixing": MIXINGS[mixing], **model},
            "optimizer": {"_target_": "torch.optim.Adamax", "lr": 0.002},
            "trainer": {"max_epochs": 4},
            "seed": seed,
            "run_dir": str(folder),
        }
    )
    for key, value in dict(config).items():
        OmegaConf.update(content, key, value, force_add=True)
    OmegaConf.save(content, folder / "config.yaml")
    write_metrics(folder, [(step, 9 - step / 10, 8 - step / 10) for step in range(0, 40, 10)])
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step=0000010.png")
    scores = {
        "data": data,
        "split": "test",
        "num_images": 243,
        "test/bits_per_dim": score,
        "test/bits_per_dim_standard_error": 0.01,
        "test/bits_per_dim_averaged": score + 0.1,
        "test/png_bits_per_dim": 5.0,
        "num_parameters": 1234,
    }
    if finished:
        (folder / "results.json").write_text(json.dumps(scores | dict(results)))
    return folder


def write_metrics(folder, rows):
    path = folder / CSV
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{step // 10},{step},{train},,\n{step // 10},{step},,{val},{step / 7}\n" for step, train, val in rows]
    path.write_text("epoch,step,train/bits_per_dim,val/bits_per_dim,cost/device_hours\n" + "".join(lines))


def read(*places):
    collection = collect([str(place) for place in places])
    return collection, compare(collection)


def report_on(*places):
    return make_report(*read(*places), "raw", {})


def section(report, title):
    (found,) = [section for section in report.sections if section.title == title]
    return found


def main_table(report):
    """The main table of the first comparison on the photos."""
    return section(report, "Results on photos").tables[0]


def missing(report):
    """All that was in the way, as one text."""
    return str(section(report, MISSING).tables)


def cells(table):
    return [row for rows in table.groups.values() for row in rows]


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch):
    """Drawing takes a second a chart; those who look at charts use the module's ``page``, which has them."""
    monkeypatch.setattr("flows.reporting.contents.training_curves", lambda *_: None)


@pytest.fixture
def runs(tmp_path):
    """Two layers on three seeds each."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f"runs/a/seed={seed}", "1x1", seed, 3.5 + 0.01 * seed)
        write_run(tmp_path / f"runs/b/seed={seed}", "emerging", seed, 3.4 + 0.02 * seed, hidden_channels=57)
    return tmp_path / "runs"


# -- statistics --------------------------------------------------------------------------------------------------------


def test_a_verdict_needs_a_difference_beyond_its_error():
    differences = ([-0.10, -0.11], [0.10, 0.11], [-0.10, 0.06], [-0.10])
    assert [Estimate.of(d).verdict for d in differences] == [", better", ", worse", ", within the error", ""]
    estimates = [Estimate.of(values) for values in ([3.40, 3.44], [3.43, 3.45], [3.60, 3.61], [3.30], [])]
    assert best(estimates) == [True, True, False, False, False]  # of a single seed nobody knows
    assert best(estimates[:1]) == [False]  # best of nothing


# -- what belongs together ---------------------------------------------------------------------------------------------


def test_runs_that_differ_in_seed_and_place_alone_are_one_row(runs):
    report = report_on(runs)
    assert section(report, MISSING).paragraphs[0].startswith("Nothing")
    assert main_table(report).header[5] == "bits/dim, averaged weights, K = 1"
    one, two = cells(main_table(report))
    assert one == ["1x1", "64", "1,234", "3", "3.520 ± 0.010", "3.620 ± 0.010", "-"]
    assert two[:6] == ["emerging 3x3", "57", "1,234", "3", "3.440 ± 0.020", "3.540 ± 0.020"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"data": "hubble"}, "Data: hubble"),
        ({"results": {"data": "photos-other-release"}}, "Data: photos-other-release"),
        ({"results": {"split": "val"}}, "split: val"),
        ({"results": {"num_noise_samples": 16}}, "K = 16 draws of noise per image"),
        ({"results": {"num_images": 10}}, ", 10 images"),
        ({"results": {"selection_note": "Selected on the test images."}}, "image. Selected on the test images."),
        ({"dequantizer": BITS[5]}, "5 bits a pixel"),
    ],
)
def test_figures_that_cannot_be_compared_never_share_a_table_and_say_why(runs, other, words):
    write_run(runs / "other", score=1.0, **other)
    report = report_on(runs)
    assert words in as_markdown(report)
    tables = [part.tables[0] for part in report.sections if part.title.startswith("Results on")]
    assert sorted(len(cells(table)) for table in tables) == [1, 2]
    assert len({part.title for part in report.sections}) == len(report.sections)
    assert "cannot be compared" in " ".join(report.sections[0].paragraphs)


def test_rows_that_differ_in_more_than_the_layer_stand_in_blocks_of_their_own(runs):
    for seed in (1, 2, 3):
        write_run(runs / f"c/{seed}", "1x1", seed, 4.0, num_steps=2, config={"trainer.log_every_n_steps": 3})
        write_run(runs / f"d/{seed}", "emerging", seed, 3.9, num_steps=2, config={"trainer.log_every_n_steps": 3})
    table, key, *_ = section(report_on(runs), "Results on photos").tables
    assert [*table.groups] == ["D 4", "D 2"]
    for rows in table.groups.values():
        assert [isinstance(row[4], Bold) for row in rows] == [False, True]
    assert {row[1] for row in cells(key)} == {"D 4", "D 2, trainer.log_every_n_steps 3"}


def test_differences_are_taken_seed_by_seed(runs):
    shutil.rmtree(runs / "a/seed=2")
    table = main_table(report_on(runs))
    assert table.header[6].startswith("difference to 1x1, same seeds")
    differences = [3.42 - 3.51, 3.46 - 3.53]
    expected = f"{statistics.fmean(differences):+.3f} ± {statistics.stdev(differences):.3f}, better"
    assert [row[6] for row in cells(table)] == ["-", expected]
    assert [row[3] for row in cells(table)] == ["2", "3"]


def test_the_difference_of_single_runs_has_the_error_of_its_groups(tmp_path):
    groups, hardness = np.repeat([5, 3, 4], 2), np.repeat([1.0, 3.0, 5.0], 2)
    for mixing, scores in {"1x1": hardness, "emerging": hardness - [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]}.items():
        grouped = {"num_images": 6, "num_groups": 3}
        folder = write_run(tmp_path / mixing, mixing, score=float(scores.mean()), results=grouped)
        table = np.stack([groups, scores], axis=1)
        np.savetxt(folder / "test_scores.csv", table, delimiter=",", header="group,raw", comments="")
    report = report_on(tmp_path)
    shown = f"-0.200 (± {statistics.stdev([0.1, 0.2, 0.3]) / 3**0.5:.3f} over images)"
    assert [row[6] for row in cells(main_table(report))] == ["-", shown]
    assert all("± 0.010 by group" in row[7] for row in cells(section(report, EVERY_RUN).tables[0]))
    (folder / "test_scores.csv").write_text("group,raw\n1")
    assert "(± " not in as_markdown(report_on(tmp_path))


def test_samples_that_are_not_finite_are_added_up_over_the_seeds(tmp_path):
    for seed, lost in ((1, 3), (2, 40)):
        looked = {"num_samples": 1000, "samples_not_finite": lost, "samples_not_finite_averaged": 0}
        write_run(tmp_path / f"new-{seed}", seed=seed, results=looked)
    write_run(tmp_path / "old", mixing="emerging")  # from before anybody looked
    table = main_table(report_on(tmp_path))
    assert table.header[-2:] == [f"samples not finite, {kind}" for kind in ("raw", "averaged")]
    assert [row[-2:] for row in cells(table)] == [["43 of 2,000", "0 of 2,000"], ["-", "-"]]


def test_what_runs_cost_stands_beside_their_scores(tmp_path):
    for seed, hours in ((1, 2.0), (2, 3.0)):
        cost = {"device": "H100", "num_devices": 2, "seconds": 1800 * hours, "device_hours": hours}
        cost |= {"images_per_second": 1234.5, "peak_memory_bytes": 2**31, "flops_per_image": 5 * 10**9}
        write_run(tmp_path / f"new-{seed}", seed=seed, results=cost)
    write_run(tmp_path / "old", mixing="emerging")  # from before anybody counted
    report = report_on(tmp_path)
    table = main_table(report)
    assert table.header[-2:] == ["device-hours per run", "GFLOPs per image and step"]
    assert [row[-2:] for row in cells(table)] == [["2.50", "5.00"], ["-", "-"]]
    rows = cells(section(report, EVERY_RUN).tables[0])
    assert rows[0][-6:] == ["1 h 00 min", "2.00", "1,230", "2.00", "5.00", "2 x H100"]
    assert rows[2][-6:] == ["-"] * 6


def test_a_curve_against_another_has_the_steps_that_both_have():
    assert Curve([1, 3, 5], [9.0, 8.0, 7.0]).against(Curve([3, 4, 5], [0.1, 0.2, 0.3])) == ([0.1, 0.3], [8.0, 7.0])


def test_repeated_seeds_and_other_images_by_the_same_name_are_noticed(runs):
    write_run(runs / "b/again", "emerging", 1, finished=False, hidden_channels=57)
    write_run(runs / "c", "1x1", 9, results={"test/png_bits_per_dim": 5.1})
    report = report_on(runs)
    assert [row[3] for row in cells(main_table(report))] == ["4", "3"]
    assert "'b/again', 'repeats seed 1 of the configuration in b/seed=1" in missing(report)
    assert "png needs from 5.0000 to 5.1000 bits/dim: these are not the same images" in missing(report)


def test_evaluations_stand_in_columns_of_their_own(runs):
    images = {"data": "photos", "split": "test", "num_images": 243}
    record = images | {"weights": "raw", "num_noise_samples": 16, "seed": 0}
    for seed, score in ((1, 3.30), (2, 3.34)):
        place = runs / f"b/seed={seed}/evaluations"
        place.mkdir()
        (place / "best-raw-K16-seed0.json").write_text(json.dumps(record | {"bits_per_dim": score}))
        (place / "best-raw-K1-seed0.json").write_text(json.dumps(record | {"bits_per_dim": 1.0, "num_images": 5}))
    (place / "best-averaged-K1-seed0.json").write_text("{")
    report = report_on(runs)
    table = section(report, "Results on photos").tables[1]
    assert table.header == ["configuration", "bits/dim, raw weights, K = 16, noise seed 0"]
    assert cells(table) == [["emerging 3x3", "3.320 ± 0.028 (n = 2)"]]
    assert "best-averaged-K1-seed0.json', 'is not a whole evaluation" in missing(report)


# -- the paper's figures -----------------------------------------------------------------------------------------------


def test_the_papers_figure_stands_beside_its_own_configuration_only(tmp_path):
    paper = {"num_levels": 3, "num_steps": 8, "data": "cifar10 (holdout splits)"}
    write_run(tmp_path / "a", "1x1", **paper, hidden_channels=512)
    write_run(tmp_path / "b", "emerging", **paper, hidden_channels=507)
    write_run(tmp_path / "c", "emerging", **paper, hidden_channels=64)
    write_run(tmp_path / "d", "emerging", **paper, hidden_channels=507, dequantizer=BITS[5])
    report = report_on(tmp_path)
    table = section(report, "Results on cifar10 (holdout splits)").tables[0]
    assert table.header[-1].startswith("the paper")
    beside = {row[1]: row[-1] for row in cells(table)}
    paper = {"512": "3.46 ± 0.005 (table 4); 3.46 (table 6)", "507": "3.43 ± 0.004 (table 4)"}
    assert beside == paper | {"64": "-"}
    five_bits = section(report, "Results on cifar10 (holdout splits), 5 bits").tables[0]
    assert not any("the paper" in name for name in five_bits.header)


@pytest.mark.parametrize("experiment", ["smoke", "table4/cifar10_emerging_d8", "laptop/table2_periodic"])
def test_runs_of_the_shipped_configurations_that_differ_in_seed_and_memory_are_repetitions(experiment):
    first, second = (
        compose(f"experiment={experiment}", f"seed={seed}", f"run_dir=runs/{seed}", f"model.memory={memory}")
        for seed, memory in ((1, "store"), (2, "recompute"))
    )
    assert first != second
    assert comparable(first) == comparable(second)


def test_shipped_layers_have_short_names_and_the_papers_tables_are_whole():
    for option in configs.MIXINGS:
        node = compose(f"mixing={option}")["mixing"]
        assert {part["_target_"] for _, part in nodes(node) if is_node(part)} <= LAYERS.keys(), option
        assert "_" not in mixing_name(node)
    assert mixing_name(compose("mixing=maf")["model"]["mixing"]) == "MAF"
    assert mixing_name(compose("mixing=maf", "mixing.max_input=1.0")["model"]["mixing"]) == "MAF, max_input 1.0"
    assert len(paper_scores()) == 21


# -- run folders in any state ------------------------------------------------------------------------------------------


def test_running_and_dead_runs_are_told_apart_and_named_with_their_progress(runs):
    running = write_run(runs / "b/seed=4", "emerging", 4, finished=False, hidden_channels=57)
    write_run(runs / "b/seed=5", "emerging", 5, finished=False, hidden_channels=57)
    with run_folder_lock(running):
        report = report_on(runs)
    assert cells(main_table(report))[1][3] == "3 + 1 running + 1 stopped"
    unfinished = [row[3:7] + row[-3:] for row in cells(section(report, EVERY_RUN).tables[0]) if row[4] != "finished"]
    begun = re.search(r"since (.{16})(?:, commit (\S+))?", (running / ".lock").read_text()).groups("-")
    assert unfinished[0] == ["b/seed=4", "running", "4 of 4", "5.000", *begun, gethostname()]
    assert unfinished[1] == ["b/seed=5", "stopped", "4 of 4", "5.000", "-", "-", "-"]
    assert re.search(r"Written \d{4}-\d\d-\d\d", report.subtitle)
    assert section(report, MISSING).paragraphs[0].startswith("2 unfinished runs")


UNREADABLE = "cannot be read as a configuration"
DAMAGES = {
    "binary csv": (CSV, lambda old: b"\x00\xff\x80step\x00\n1\n", "cannot be read to its end"),
    "half results": ("results.json", lambda old: old[:50], "cannot be read"),
    "results of nan": ("results.json", lambda old: old.replace(b"3.44", b"NaN"), "test/bits_per_dim is nan, not a"),
    "circular config": ("config.yaml", lambda old: b"&a [*a]", UNREADABLE),
    "code in config": ("config.yaml", lambda old: b"!!python/object/apply:os.system ['touch PWNED']", UNREADABLE),
    "other config": ("config.yaml", lambda old: b"wandb_version: 1", "is not a configuration of train.py"),
}


@pytest.mark.parametrize(("name", "change", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_the_rest_is_still_reported(runs, name, change, words):
    path = runs / "b/seed=2" / name
    path.write_bytes(change(path.read_bytes()))
    report = report_on(runs)
    assert [row[0] for row in cells(main_table(report))] == ["1x1", "emerging 3x3"]
    (where, what), *_ = cells(section(report, MISSING).tables[0])
    assert where == str(path) and what.startswith(words)


def test_what_a_cut_line_of_a_csv_says_is_not_believed(runs):
    with (runs / "a/seed=1" / CSV).open("a") as file:
        file.write("4,40,,3")  # was to become 3.99
    (run,) = read(runs / "a/seed=1")[0].runs
    assert run.curves["val/bits_per_dim"].steps[-1] == 30


def test_every_run_is_found_once_and_places_without_any_are_named(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    inner = runs / "a/seed=1/wandb/offline-run-1/files"  # W&B's own, no other run's
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("wandb_version: 1")
    collection, _ = read(tmp_path / "empty", tmp_path / "nowhere", f"{runs}/*/seed=1", runs / "a", runs)
    assert len(collection.runs) == 6
    named = [problem.where for problem in collection.problems if problem.what.startswith("holds no run")]
    assert named == [f"{tmp_path}/empty", f"{tmp_path}/nowhere"] and len(collection.problems) == 2
    with pytest.raises(InputError, match="no run to report on"):
        collect([str(tmp_path / "empty")])


# -- the page ----------------------------------------------------------------------------------------------------------

HOSTILE = '<script>document.title="taken"</script><img src=http://example.com/x.png> $\\frac{ | `x` [a](http://b)'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything in it, some of it hostile, and its folder."""
    folder = tmp_path_factory.mktemp("page")
    for seed in (1, 2):
        write_run(folder / f"runs/a/{seed}", "1x1", seed, 3.5 + 0.01 * seed)
        write_run(folder / f"runs/b/{seed}", "emerging", seed, 3.4 + 0.01 * seed)
    write_run(folder / "runs/<b onclick=1>", "emerging", 1, 3.6, config={"optimizer.lr": HOSTILE})
    write_run(folder / "runs/c", "emerging", 1, 3.3, results={"data": HOSTILE, "selection_note": HOSTILE})
    collection, comparisons = read(folder / "runs")
    times = {one: SamplingTimes(dict.fromkeys(one.rows, 5.0), 16, "a machine") for one in comparisons}
    report = make_report(collection, comparisons, "raw", times)
    return report, *write_report(report, folder / "report")


def test_the_page_has_everything_inside_and_refers_to_nothing(page):
    report, html, markdown = page
    text = html.read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "<script" not in text
    assert "a machine" in text
    assert set(re.findall(r'(?:src|href)="([^"#:]*[:#])', text)) == {"data:", "#"}
    figures = [figure for part in report.sections for figure in part.figures]
    assert all(figure.data_uri in text for figure in figures)
    drawn = {figure.name: figure.content for figure in figures}
    assert {"1-curves.svg", "1-samples-1.png"} <= drawn.keys()
    assert b"<!-- optimiser steps -->" in drawn["1-curves.svg"] and b"<!-- device-hours -->" in drawn["1-curves.svg"]
    assert drawn["1-curves.svg"] == training_curves(read(html.parent.parent / "runs")[1][0], "1").content

    for part in report.sections:
        assert text.count(f'href="#{part.anchor}"') == text.count(f'id="{part.anchor}"') == 1
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", markdown.read_text(), flags=re.MULTILINE)
    assert len(pictures) == 6
    assert all((markdown.parent / picture).is_file() for picture in pictures)


def test_text_from_run_folders_is_shown_as_text(page):
    _, html, markdown = page
    assert "&lt;script&gt;" in html.read_text()
    text = markdown.read_text()
    assert [markup for markup in ("<script", "<img", "[a](http") if markup in text] == []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_thirty_runs_that_differ_in_anything_make_a_small_page_of_short_names(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.reporting.contents.training_curves", training_curves)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    for n in range(30):
        odd = {"optimizer.lr": 3e-5 * (n // 2), f"trainer.{n:040}": n, f"callbacks.{n % 7}": None if n % 2 else "on"}
        noise.save(write_run(tmp_path / f"runs/{n}", config=odd) / "samples/final.png")
        if n < 5:  # steps
            write_metrics(tmp_path / f"runs/{n}", [(step, 9.0, 8.0) for step in range(n)])
    report = report_on(tmp_path / "runs")
    html, _ = write_report(report, tmp_path / "report")
    assert html.stat().st_size < 3e6
    assert html.read_text().count("-samples-") == html.read_text().count("Reduced; ") == 30
    part = section(report, "Results on photos")
    assert "the 12 configurations that are best" in part.figures[0].caption
    table, key = part.tables[:2]
    assert [row[0] for row in cells(table)] == [row[0] for row in cells(key)]
    assert len({row[0] for row in cells(key)}) == 30 and max(len(row[0]) for row in cells(key)) <= 40
    settings = {row[2]: row[1] for row in cells(key)}
    assert settings["11"] == f"learning rate 0.00015, callbacks.4 null, trainer.{11:040} 11"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_the_page(page, tmp_path):
    """Every picture decodes, nothing runs, nothing is wider than a telephone but what scrolls by itself."""

    def browse(path):
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        options += ["--window-size=500,900", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
        return subprocess.run([CHROMIUM, *options, f"file://{path}"], capture_output=True, text=True, timeout=600)

    _, html, _ = page
    untouched = browse(html)
    assert "<title>Invertible convolutions: report</title>" in untouched.stdout
    assert "CONSOLE" not in untouched.stderr  # where Chromium names whatever the policy had it refuse
    # The page's policy forbids scripts; for the probe, and only there, one takes its place.
    script = """<script>addEventListener("load", () => {
      document.body.style.width = "400px";
      document.title = "RESULT " + [...document.images].filter(p => !p.naturalWidth).length + " broken, "
        + (document.body.scrollWidth - document.body.clientWidth) + " too wide"; });</script>"""
    probe = tmp_path / "probe.html"
    probe.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', script, html.read_text(), count=1))
    assert "<title>RESULT 0 broken, 0 too wide</title>" in browse(probe).stdout


# -- the program -------------------------------------------------------------------------------------------------------


def test_the_program_reports_names_what_it_met_and_writes_both_files(runs, tmp_path):
    (runs / "b/seed=2/results.json").write_text("{")
    said = run_forked("report.py", f"runs={tmp_path}/runs", "output=here", cwd=tmp_path)
    assert "results.json: cannot be read" in said
    assert "its sampling time could not be measured" in said  # these runs have no checkpoints
    assert (tmp_path / "here/report.html").is_file()
    assert "![" in (tmp_path / "here/report.md").read_text()
