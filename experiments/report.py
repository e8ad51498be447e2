"""Make one self-contained HTML page out of a comparison.

    python -m experiments.report --runs runs/three --out runs/three/report.html

Reads what ``experiments.compare`` wrote. ``--difficulty`` (of ``experiments.studies.difficulty``) adds
how difficult the picks are over training. Pictures are inside the page; ``--pictures`` writes them as
files too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.config import TEXT_DATASETS, TrainConfig
from experiments.harness.build import load_data
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.conclusion import in_words
from experiments.harness.inputs import inputs_of
from experiments.harness.page import Page
from experiments.harness.report_figures import (
    accuracy_figure,
    balance_figure,
    contact_figure,
    difficulty_figure,
    read_scores,
    region_figure,
    split_figure,
)
from experiments.harness.report_tables import method_table, region_rows, time_table
from experiments.harness.run_folder import check_inputs, held_file
from experiments.harness.runs import by_method, compared, file_of, picks_of, read_runs


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What to read and where to write."""

    runs: Path
    """Folder that experiments.compare wrote."""
    out: Path = Path("report.html")
    """The page."""
    difficulty: Path | None = None
    """Scores that experiments.studies.difficulty wrote."""
    pictures: Path | None = None
    """Folder that gets the pictures as PNG files, too."""
    without_picks: bool = False
    """Leave out what only the run folders hold: regions and picks."""


def _regions(page: Page, runs: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Show the regions of a run of CREST that has some."""
    own = one["settings"]["region"]
    if own is None:
        return
    page.section(
        "Quadratic regions",
        "One run of CREST: where its model of the loss held and where it was given up.",
    )
    caption = f"Relative error of the model at the checks, and where regions end; seed {one['seed']}."
    page.picture("regions", region_figure(one, own["tau"]), caption)
    page.table(region_rows(runs))


def build(config: ReportConfig) -> None:
    """Make the page."""
    runs, made = read_runs(config.runs)
    scores = None
    if config.difficulty is not None:
        scores = read_scores(config.difficulty)
    page = Page("Coresets compared", made, config.pictures)
    page.text(" ".join(in_words(runs)))
    page.picture(
        "accuracy",
        accuracy_figure(runs),
        "Held-out accuracy over steps, over all work and over seconds; mean and range over seeds.",
    )
    page.section(
        "Accuracy, time and work",
        "Means over seeds with 95 % intervals (Student's t); differences are paired by seed; seconds "
        "are medians without evaluation and compilation. Work counts every example passed forward and "
        "backward, in training steps.",
    )
    page.table(method_table(runs))
    times = time_table(runs)
    if times:
        page.section(
            "Time to accuracy",
            "Median over the runs that get there, over the time that full training takes.",
        )
        page.table(times)
    page.section(
        "What the time goes to",
        "Full training is left out; its time is all steps. Coresets that are chosen inside the program "
        "of a step count as steps.",
    )
    page.picture("split", split_figure(runs), "Seconds by phase, medians over seeds.")
    crest = [run for run in runs if run["method"] == "crest" and not config.without_picks]
    if crest:
        path = file_of(config.runs, crest[0], "config.json")
        settings = TrainConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
        _regions(page, runs, crest[0])
        shown = by_method([r for r in runs if r["budget"] == crest[0]["budget"]])
        groups = {name: [picks_of(config.runs, r) for r in shown[name]] for name in compared(runs)}
        page.section("What is picked", "Counted in each twentieth of the run.")
        if scores is not None:
            figure, rows = difficulty_figure(groups, scores)
            caption = (
                "Difficulty by a separate full run (experiments.studies.difficulty); band: range over "
                "seeds."
            )
            page.picture("difficulty", figure, caption)
            page.table(rows)
        if settings.dataset not in TEXT_DATASETS:
            _picture_picks(page, path.parent, settings, groups)
    page.write(config.out)


def _picture_picks(
    page: Page, run: Path, settings: TrainConfig, groups: dict[str, list[np.ndarray]]
) -> None:
    """Show classes and, where they are images, examples of the picks."""
    data = load_data(settings.dataset, settings.data)
    check_inputs(run, inputs_of(data, settings.data), "pass --without-picks")
    figure = balance_figure(groups, data.train_labels, data.class_names)
    page.picture("classes", figure, "Share of each class among the picks, and among all examples.")
    if data.train_inputs.ndim != 4:
        return
    figure = contact_figure(
        np.sum(groups["crest"], axis=0), data.train_inputs, data.train_labels, data.class_names
    )
    page.picture("contact", figure, "The examples that CREST picks most and least often, all seeds.")


def main() -> None:
    """Read the command line and make the page."""
    with one_sentence("interrupted; start again."):
        config = tyro.cli(ReportConfig, description=__doc__)
        path = config.difficulty
        if path is not None and not path.is_file():
            raise UserError(f"--difficulty {path} is not there; make it first, or leave it out.")
        with held_file(config.out):
            build(config)
    print(f"the page is {config.out}")


if __name__ == "__main__":
    main()
