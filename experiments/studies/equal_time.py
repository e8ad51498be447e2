"""Where CREST pays: settings x methods, at equal steps and at equal wall-clock time.

    python -m experiments.studies.equal_time --jobs 2 --out runs/equal_time

For every setting (see ``experiments.presets``) the methods run for the budget; then random and
stratified batches run once more with as many steps as fit the median seconds of CREST, so that the
second comparison is at equal time with all work counted. A run that is there already is not run again.
The folder gets one run folder per run, ``summary.jsonl``, ``summary.md`` and ``equal_time.png``.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.config import Method, TrainConfig
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, read_lines, table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import interval, with_interval, work_in_steps
from experiments.presets import EQUAL_TIME as EQUAL_TIME_SETTINGS
from experiments.presets import SETTINGS
from experiments.sweep import made_by, run_all

Run = dict[str, Any]
EQUAL_TIME: tuple[Method, ...] = ("random", "stratified")


@dataclasses.dataclass(frozen=True)
class EqualTimeConfig:
    """What to run."""

    settings: tuple[str, ...] = tuple(EQUAL_TIME_SETTINGS)
    """Settings of experiments.presets."""
    methods: tuple[Method, ...] = ("random", "stratified", "dynamic_pruning", "crest")
    """Methods at the budget; crest and stratified must be among them."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of every run."""
    full_seeds: int = 0
    """Full training on the first so many seeds."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Rows that the evaluations take."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""
    merge: tuple[Path, ...] = ()
    """Run nothing: draw one picture of these comparisons together."""
    out: Path = Path("runs/equal_time")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown or not self.settings:
            raise UserError(
                f"--settings names {', '.join(unknown) or 'none'} but must name some of "
                f"{', '.join(SETTINGS)}; choose among these."
            )
        if not {"crest", "stratified"} <= set(self.methods):
            raise UserError(
                f"--methods is {self.methods} but crest and stratified must be among them, for the "
                "table compares these; add them."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds is {self.seeds} but must name at least one, each once.")
        if self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs} but must be at least 1; 1 runs one at a time.")


def read_runs(folders: tuple[Path, ...]) -> list[Run]:
    """Return the runs of one or more comparisons."""
    runs = []
    for folder in folders:
        path = folder / "summary.jsonl"
        if not path.is_file():
            raise UserError(
                f"{folder} holds no summary.jsonl but must be a folder that "
                "experiments.studies.equal_time wrote; run "
                "it first."
            )
        runs += read_lines(path)
    return runs


def _options(
    config: EqualTimeConfig, setting: str, method: Method, seed: int, factor: float
) -> TrainConfig:
    folder = config.out / setting / f"{method}{'' if factor == 1 else '-equal-time'}-seed{seed}"
    options = SETTINGS[setting].options(method, seed, factor)
    return dataclasses.replace(
        options,
        out=folder,
        resume=folder.exists(),
        data=dataclasses.replace(options.data, evaluate_on=config.evaluate_on),
    )


def run_setting(config: EqualTimeConfig, setting: str) -> list[Run]:
    """Run one setting: all methods at the budget, then the random ones for CREST's seconds."""
    first = [
        _options(config, setting, method, seed, 1.0)
        for seed in config.seeds
        for method in config.methods
    ]
    first += [
        _options(config, setting, "full", seed, 1.0) for seed in config.seeds[: config.full_seeds]
    ]
    runs = [{**run, "at": "budget"} for run in run_all(first, config.jobs)]
    factor = time_ratio(runs)
    again = [
        _options(config, setting, method, seed, factor)
        for seed in config.seeds
        for method in EQUAL_TIME
        if method in config.methods and factor > 1
    ]
    runs += [{**run, "at": "equal time"} for run in run_all(again, config.jobs)]
    return [{**run, "setting": setting} for run in runs]


def time_ratio(runs: list[Run]) -> float:
    """Return CREST's median seconds over those of stratified batches, for the same steps."""
    crest, stratified = (
        np.median([run["training_seconds"] for run in runs if run["method"] == method])
        for method in ("crest", "stratified")
    )
    # Rounded, so that a resumed comparison finds the runs that it has begun.
    return round(float(crest / stratified), 2)


def accuracies(runs: list[Run], method: str, at: str = "budget") -> dict[int, float]:
    """Return the final accuracy by seed."""
    return {
        run["seed"]: 100 * run["curve"][-1]["accuracy"]
        for run in runs
        if run["method"] == method and run["at"] == at
    }


def gains(runs: list[Run], other: str, at: str, method: str = "crest") -> list[float]:
    """Return the points by which CREST is ahead of another method, by seed."""
    own, others = accuracies(runs, method), accuracies(runs, other, at)
    return [own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())]


def setting_table(runs: list[Run]) -> str:
    """Return the table of one setting."""
    rows = []
    for at, method in dict.fromkeys((run["at"], run["method"]) for run in runs):
        own = [run for run in runs if run["at"] == at and run["method"] == method]
        rows.append(
            [
                method + (" for CREST's seconds" if at != "budget" else ""),
                str(own[0]["steps"]),
                with_interval(list(accuracies(runs, method, at).values())),
                "-"
                if method in ("crest", "full")
                else with_interval(gains(runs, method, at), sign="+"),
                f"{np.median([run['training_seconds'] for run in own]):.1f}",
                f"{np.median([work_in_steps(run) for run in own]):.0f}",
            ]
        )
    header = [
        "method",
        "steps",
        "accuracy %",
        "CREST's gain over it, points",
        "seconds",
        "cost in training steps",
    ]
    return table(header, rows)


def plot_gains(runs: list[Run], path: Path) -> None:
    """Draw CREST's lead over both kinds of random batches, at equal steps and at equal time."""
    settings = list(dict.fromkeys(run["setting"] for run in runs))
    figure = Figure(figsize=(9, 1.2 + 0.62 * len(settings)), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, at in zip(panels, ("budget", "equal time"), strict=True):
        for shift, other, colour in ((-0.14, "random", "C0"), (0.14, "stratified", "C2")):
            for place, setting in enumerate(settings):
                own = gains([run for run in runs if run["setting"] == setting], other, at)
                if not own:
                    continue
                mean, half = interval(own)
                panel.errorbar(
                    mean, place + shift, xerr=None if np.isnan(half) else half, fmt="o", ms=5,
                    color=colour, capsize=3, label=f"against {other}" if place == 0 else None,
                )  # fmt: skip
        panel.axvline(0, color="0.4", lw=1)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title("equal steps" if at == "budget" else "equal seconds, all work counted")
        panel.set_xlabel("points by which CREST is ahead (95 % interval)")
    panels[0].set_yticks(range(len(settings)), [name.replace("_", " ") for name in settings])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=130)


EXPLANATION = """
Accuracies are means over seeds, in percent; ± is the 95 % interval (Student's t); differences are
points, paired by seed. Seconds are medians: everything that training needs, without evaluation and
compilation. "For CREST's seconds" gives the method as many more steps as CREST takes longer, by the
ratio of the medians. "cost" counts all examples passed forward and backward, in training steps.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, then write and print the tables."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(EqualTimeConfig, args=argv, description=__doc__)
        with held_folder(config.out):
            if config.merge:
                plot_gains(read_runs(config.merge), config.out / "equal_time.png")
                print(f"The picture is {config.out / 'equal_time.png'}.")
                return
            runs = [run for setting in config.settings for run in run_setting(config, setting)]
            lines = config.out / "summary.jsonl"
            lines.unlink(missing_ok=True)
            for run in runs:
                append_line(lines, run)
            made = made_by(__file__, argv, runs, config.jobs)
            parts = [f"{made}, seeds {' '.join(map(str, config.seeds))}"]
            for name in config.settings:
                options, own = SETTINGS[name], [run for run in runs if run["setting"] == name]
                rates = {
                    run["method"]: options.options(run["method"], 0).optim.learning_rate for run in own
                }
                parts.append(
                    f"## {name}\n\n{options.run.dataset}, {options.run.model}, full training of "
                    f"{options.run.epochs} epochs; rates "
                    f"{', '.join(f'{method} {rate:g}' for method, rate in rates.items())}\n\n"
                    f"{setting_table(own)}"
                )
            (config.out / "summary.md").write_text("\n\n".join([*parts, EXPLANATION]), encoding="utf-8")
            plot_gains(runs, config.out / "equal_time.png")
            print(
                "\n\n".join([*parts[1:], EXPLANATION]),
                f"\nThe picture is {config.out / 'equal_time.png'}.",
            )


if __name__ == "__main__":
    main()
