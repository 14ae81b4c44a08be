"""Set up a W&B workspace that shows the paper's comparison at a glance.

Usage, once for a project (needs ``pip install wandb-workspaces`` and ``wandb login``)::

    python sweeps/wandb_workspace.py ENTITY [PROJECT]

The runs are grouped by mixing layer, and every curve is a layer's mean over its runs, with their spread.
"""

import argparse

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

STEP = "trainer/global_step"
LAYER = panels.Config("logger.mixing")

SECTIONS = {
    "Bits/dim": ["val/bits_per_dim", "val/bits_per_dim_averaged", "train/bits_per_dim"],
    "Can it be inverted?": [
        "val/samples_not_finite",
        "val/inverse_gain",
        "val/largest_value",
        "val/values_outside",
        "val/mixing_gain",
        "val/round_trip_error",
        "val/round_trip_error_unusual",
    ],
    "Training": ["train/gradient_norm", "lr-Adamax", "train/images_per_second"],
    "Latents": ["latents/mean_level_1", "latents/std_level_1", "latents/mean_level_2", "latents/std_level_2"],
    "Memory": ["memory/process_gib", "memory/device_gib"],
}
"""The figures that are drawn over the steps."""

SCORES = ["test/bits_per_dim", "test/bits_per_dim_averaged"]
"""One number for each run, as in the paper's tables."""


def curves(names: list[str]) -> list[panels.LinePlot]:
    """A plot for each figure, with a line for each layer."""
    grouped = {"groupby": LAYER, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [panels.LinePlot(title=name, x=STEP, y=[name], **grouped) for name in names]


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace as it is saved."""
    table = [panels.BarPlot(title=name, metrics=[name], groupby=LAYER, groupby_aggfunc="mean") for name in SCORES]
    samples = panels.MediaBrowser(title="samples, by temperature", media_keys=["samples"])
    first = workspaces.Section(name="The paper's comparison", panels=[*table, samples], is_open=True)
    others = [workspaces.Section(name=name, panels=curves(figures), is_open=True) for name, figures in SECTIONS.items()]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Invertible convolutions",
        sections=[first, *others],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config("logger.mixing")],
            pinned_columns=["summary:val/bits_per_dim.min", "summary:test/bits_per_dim"],
        ),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", help="your user or team on W&B")
    parser.add_argument("project", nargs="?", default="emerging-flows")
    arguments = parser.parse_args()
    print(workspace(arguments.entity, arguments.project).save().url)
