"""Where CREST pays: the tables of ``experiments.studies.equivalent`` of several settings in one.

    python -m experiments.studies.settings_map --runs runs/long_mlp runs/short_resnet --out runs/map

For every setting: what CREST is ahead of stratified batches at equal steps, and at equal seconds of
stratified batches with more steps and with a larger batch; and the equivalent batch over the cost.
Writes ``settings.md`` and ``settings.png``.
"""

import dataclasses
from itertools import compress
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.harness.cli import one_sentence
from experiments.harness.records import table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import interval, with_interval
from experiments.presets import SETTINGS
from experiments.studies import equivalent
from experiments.studies.equivalent import accuracies, is_timed, seconds_of, worth_of
from experiments.studies.variants import Run, read_summary
from experiments.sweep import command_line

# Networks and data as the picture calls them.
WORDS = {
    "mlp": "MLP", "resnet8": "ResNet-8", "resnet20": "ResNet-20", "minilm": "MiniLM",
    "fashion_mnist": "60,000 images", "fashion_mnist_20k": "20,000 images",
    "fashion_mnist_12k": "10,000 images", "fashion_mnist_20k_imbalanced": "imbalanced, duplicated rows",
    "digits": "1,442 digits", "images": "CIFAR-10 (JPEG)", "rotten_tomatoes": "film reviews",
}  # fmt: skip
USUAL_BATCHES, USUAL_RATE = (128, 130), 0.1  # said only where others are taken
# What CREST is compared with: the variant, and what to call it.
OTHERS = {
    "1": "at equal steps",
    "longer": "for its seconds, more steps",
    "larger": "for its seconds, a larger batch",
}


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """What to put together."""

    runs: tuple[Path, ...]
    """Folders that experiments.studies.equivalent wrote."""
    out: Path = Path("runs/settings_map")
    """Folder of the results."""


def read_settings(folders: tuple[Path, ...]) -> dict[str, list[Run]]:
    """Return the runs by setting."""
    found: dict[str, list[Run]] = {}
    for folder in folders:
        runs = read_summary(folder)
        found[name_of(runs)] = runs
    return found


def name_of(runs: list[Run]) -> str:
    """Return the setting of runs, with what is changed of it."""
    asked = runs[0]["asked"]
    changed = [
        f"{name} {asked[name]}" for name in ("norm", "rate", "budget") if asked[name] is not None
    ]
    if asked["evaluate_on"] != "test":
        changed.append(f"{asked['evaluate_on']} rows")
    return ", ".join([asked["setting"], *changed])


def in_words(runs: list[Run]) -> str:
    """Return what was trained on what; the setting's own name where this version does not know it."""
    asked = runs[0]["asked"]
    if asked["setting"] not in SETTINGS:
        return name_of(runs)
    run = SETTINGS[asked["setting"]].run
    model, rows = (WORDS.get(name, name) for name in (run.model, run.dataset))
    parts = [f"{model} of width {run.network.width}" if run.network.width else model, rows]
    if run.batch_size not in USUAL_BATCHES:
        parts.append(f"batches of {run.batch_size}")
    if run.optim.name == "adamw":
        parts.append("AdamW")
    elif run.optim.learning_rate != USUAL_RATE:
        parts.append(f"rate {run.optim.learning_rate:g}")
    return ", ".join(parts) + name_of(runs).removeprefix(asked["setting"])


def leads(runs: list[Run], other: str) -> list[float]:
    """Return the points by which CREST is ahead of another variant, by seed; none where it was not run.

    Those at equal seconds are none either where runs are not timed. Where CREST takes no longer than
    stratified batches these have its seconds as they are; what a larger batch that was not run reaches
    is interpolated.
    """
    names = {run["variant"] for run in runs}
    if "crest" not in names or (other != "1" and not is_timed(runs)):
        return []
    if other == "larger" and other not in names:
        return equivalent.leads_for_seconds(runs, "crest")
    quick = other not in names and seconds_of(runs, "crest") <= seconds_of(runs, "1")
    own = "1" if quick else other
    if own not in names:
        return []
    return equivalent.leads(runs, "crest", own)


def summarise(settings: dict[str, list[Run]]) -> str:
    """Return the table."""
    rows = []
    for runs in settings.values():
        plain = list(accuracies(runs, "1")[0])
        row = [in_words(runs), f"{runs[0]['steps']:,}", str(len(plain)), with_interval(plain)]
        row += [with_interval(leads(runs, other), sign="+") for other in OTHERS]
        for variant in ("crest", "paper"):
            if variant in {run["variant"] for run in runs}:
                worth = worth_of(runs, variant)
                row += [worth.text(worth.work), worth.text(worth.as_long) if is_timed(runs) else "-"]
            else:
                row += ["-", "-"]
        rows.append(row)
    header = [
        "setting", "steps", "seeds", "stratified %",
        *(f"CREST {text}, points" for text in OTHERS.values()),
        "CREST: equivalent batch over cost in steps", "CREST: over the batch that takes as long",
        "CREST (paper): over cost in steps", "CREST (paper): over the batch that takes as long",
    ]  # fmt: skip
    there = [any(row[place] != "-" for row in rows) for place in range(len(header))]
    return table(list(compress(header, there)), [list(compress(row, there)) for row in rows])


def draw(settings: dict[str, list[Run]], path: Path) -> None:
    """Draw the leads of CREST in all settings."""
    figure = Figure(figsize=(9, 1.4 + 0.55 * len(settings)), layout="constrained")
    there = [name for name in OTHERS if any(leads(runs, name) for runs in settings.values())]
    panels = figure.subplots(1, len(there), sharex=True, sharey=True, squeeze=False)[0]
    for panel, other in zip(panels, there, strict=True):
        for place, runs in enumerate(settings.values()):
            own = leads(runs, other)
            if own:
                mean, half = interval(own)
                error = None if np.isnan(half) else half
                panel.errorbar(mean, place, xerr=error, fmt="o", ms=5, color="C0", capsize=3)
        panel.axvline(0, color="0.4", lw=1)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(OTHERS[other].replace(", ", ",\n"), fontsize=10)
    figure.supxlabel("points by which CREST is ahead of stratified batches, 95 % interval", fontsize=10)
    panels[0].set_yticks(
        range(len(settings)),
        [f"{in_words(runs)},\n{runs[0]['steps']:,} steps" for runs in settings.values()],
    )
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)


EXPLANATION = """
Leads are paired by seed, with 95 % intervals (Student's t). The equivalent batch is the size of a
stratified batch that does as well at equal steps; where it is above the cost of CREST, CREST does
better than a larger batch for the same cost. Where no larger batch was run for CREST's seconds, what it
reaches is interpolated between the sizes that were run. "-" was not run, or not timed.
"""


def main() -> None:
    """Read the runs, then write and print the table."""
    with one_sentence("interrupted; start again."):
        config = tyro.cli(MapConfig, description=__doc__)
        settings = read_settings(config.runs)
        with held_folder(config.out):
            text = f"`{command_line(__file__, None)}`\n\n{summarise(settings)}\n{EXPLANATION}"
            (config.out / "settings.md").write_text(text, encoding="utf-8")
            draw(settings, config.out / "settings.png")
            print(f"{text}\nThe picture is {config.out / 'settings.png'}.")


if __name__ == "__main__":
    main()
