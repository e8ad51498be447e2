"""What each part of CREST is worth: the parts taken out or changed one by one, on one setting.

    python -m experiments.ablations --setting redundant_mlp --jobs 2 --out runs/ablations

A run that is there already is not run again. The folder gets one run folder per run, ``summary.jsonl``
and ``summary.md``: accuracies, differences from CREST as it is and from stratified batches, seconds.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from crest_jax.report import append_line, table
from experiments.compare import made_by, run_all, with_interval, work_in_steps
from experiments.config import TrainConfig, UserError
from experiments.run_folder import held_folder
from experiments.settings import SETTINGS
from experiments.train import one_sentence

# name -> (what it is, options of the run, settings of CREST)
Variant = tuple[str, dict[str, Any], dict[str, Any]]
VARIANTS: dict[str, Variant] = {
    "crest": ("CREST as it is", {}, {}),
    "stratified": ("random, by class", {"method": "stratified"}, {}),
    "random": ("random", {"method": "random"}, {}),
    "unlearned": ("exclusion alone, by class", {"method": "unlearned"}, {}),
    "random_unlearned": ("exclusion alone, random", {"method": "random_unlearned"}, {}),
    "no_exclusion": ("selection alone", {}, {"exclude_below": 0.0}),
    "excluded_for_good": ("excluded for good", {}, {"exclude_for": None}),
    "span_0_1": ("coresets throughout", {"select_span": (0.0, 1.0)}, {}),
    "span_0_1_no_exclusion": (
        "coresets throughout, no exclusion", {"select_span": (0.0, 1.0)}, {"exclude_below": 0.0},
    ),
    "span_0_1_r_4m": ("coresets throughout, r = 4m", {"select_span": (0.0, 1.0)}, {"subset_size": 4}),
    "span_first": (
        "coresets in the first 35 %, no exclusion",
        {"select_span": (0.0, 0.35)}, {"exclude_below": 0.0},
    ),
    "span_second": (
        "coresets after the first drop, no exclusion",
        {"select_span": (0.5, 1.0)}, {"exclude_below": 0.0},
    ),
    "fixed_interval": ("fixed interval, no check", {}, {"tau": 1e6, "exhausted": "reanchor"}),
    "reshuffled": ("union of the coresets reshuffled", {}, {"reshuffle": True}),
    "unweighted": ("no weights", {}, {"weighted": False}),
    "reuse_2": ("each coreset twice", {}, {"reuse": 2}),
    "reuse_4": ("each coreset four times", {}, {"reuse": 4}),
    "r_4m": ("r = 4m", {}, {"subset_size": 4}),
    "r_8m": ("r = 8m", {}, {"subset_size": 8}),
    "last_layer": ("last-layer embedding", {"embedding": "last_layer"}, {}),
    "sketch": ("sketched full gradient", {"embedding": "sketch"}, {}),
    "no_smoothing": ("no smoothing", {}, {"smoothing": "none"}),
    "paper_smoothing": ("smoothing of the paper", {}, {"smoothing": "paper"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What to run."""

    setting: str = "redundant_mlp"
    """A place of the map."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which; crest and stratified must be among them."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of every run."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Rows that the evaluations take."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""
    out: Path = Path("runs/ablations")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.setting not in SETTINGS:
            raise UserError(
                f"--setting is {self.setting} but must be one of {', '.join(SETTINGS)}; choose one."
            )
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not {"crest", "stratified"} <= set(self.variants):
            raise UserError(
                f"--variants is {' '.join(self.variants)} but must hold crest and stratified, and "
                f"others of {', '.join(VARIANTS)}; choose among these."
            )
        if self.jobs < 1 or not self.seeds:
            raise UserError(
                f"--jobs is {self.jobs} and --seeds {self.seeds} but there must be one of each."
            )


def options_of(config: AblationConfig, variant: str, seed: int) -> TrainConfig:
    """Return the options of one run."""
    _, run, crest = VARIANTS[variant]
    base = SETTINGS[config.setting].options(run.get("method", "crest"), seed)
    if "subset_size" in crest:  # named in mini-batches
        crest = crest | {"subset_size": crest["subset_size"] * base.crest.batch_size}
    folder = config.out / f"{variant}-seed{seed}"
    return dataclasses.replace(
        base,
        **run,
        crest=dataclasses.replace(base.crest, **crest),
        evaluate_on=config.evaluate_on,
        out=folder,
        resume=folder.exists(),
    )


def summarise(config: AblationConfig, runs: list[dict[str, Any]]) -> str:
    """Return the table."""

    def accuracies(variant: str) -> np.ndarray:
        name = f"{config.evaluate_on}_accuracy"
        return np.array([100 * r[name] for r in runs if r["variant"] == variant])

    rows = []
    for variant in config.variants:
        own = [run for run in runs if run["variant"] == variant]
        values = accuracies(variant)
        differences = [
            "-" if variant == other else with_interval(list(values - accuracies(other)), sign="+")
            for other in ("crest", "stratified")
        ]
        rows.append(
            [
                VARIANTS[variant][0],
                with_interval(list(values)),
                *differences,
                f"{np.median([run['training_seconds'] for run in own]):.1f}",
                f"{np.median([work_in_steps(run) for run in own]):.0f}",
            ]
        )
    header = ["what", "accuracy %", "minus CREST", "minus stratified", "seconds", "work"]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(AblationConfig, args=argv, description=__doc__)
        with held_folder(config.out):
            # Seed by seed, so that all variants see the same machine.
            names = [(variant, seed) for seed in config.seeds for variant in config.variants]
            found = run_all([options_of(config, variant, seed) for variant, seed in names], config.jobs)
            runs = [{**run, "variant": variant} for run, (variant, _) in zip(found, names, strict=True)]
            lines = config.out / "summary.jsonl"
            lines.unlink(missing_ok=True)
            for run in runs:
                append_line(lines, run)
            made = made_by("ablations", argv, runs, config.jobs)
            made += f", {len(config.seeds)} seeds, {runs[0]['steps']} steps"
            text = summarise(config, runs)
            (config.out / "summary.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
