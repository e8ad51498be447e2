"""What each part of CREST is worth: the parts taken out or changed one by one, on one setting.

    python -m experiments.studies.ablations --setting imbalanced_mlp --jobs 2 --out runs/ablations

A run that is there already is not run again. The folder gets one run folder per run, ``summary.jsonl``
and ``summary.md``: accuracies, differences from CREST as it is and from stratified batches, seconds.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments.config import Method, TrainConfig
from experiments.harness.cli import UserError, check_setting, one_sentence
from experiments.harness.options import ExclusionOptions, RegionOptions
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import with_interval, work_in_steps
from experiments.presets import SETTINGS
from experiments.sweep import made_by, run_all

# name -> (what it is, method, settings of CREST)
Variant = tuple[str, Method, dict[str, Any]]
THROUGHOUT = {"select_span": (0.0, 1.0)}
VARIANTS: dict[str, Variant] = {
    "crest": ("CREST as it is", "crest", {}),
    "stratified": ("random, by class", "stratified", {}),
    "random": ("random", "random", {}),
    "dynamic_pruning": ("exclusion alone, by class", "dynamic_pruning", {}),
    "dynamic_pruning_random": ("exclusion alone, random", "dynamic_pruning_random", {}),
    "no_exclusion": ("selection alone", "crest", {"exclude": False}),
    "excluded_for_good": (
        "excluded for good", "crest", {"exclusion": ExclusionOptions(cooldown="never")}
    ),
    "span_0_1": ("coresets throughout", "crest", THROUGHOUT),
    "span_0_1_no_exclusion": (
        "coresets throughout, no exclusion", "crest", THROUGHOUT | {"exclude": False},
    ),
    "span_0_1_r_4m": ("coresets throughout, r = 4m", "crest", THROUGHOUT | {"subset_size": 4}),
    "span_first": (
        "coresets in the first 35 %, no exclusion", "crest",
        {"select_span": (0.0, 0.35), "exclude": False},
    ),
    "span_second": (
        "coresets after the first drop, no exclusion", "crest",
        {"select_span": (0.5, 1.0), "exclude": False},
    ),
    "no_check": ("regions that no check ends", "crest", {"region": RegionOptions(tau=1e6)}),
    "r_4m": ("r = 4m", "crest", {"subset_size": 4}),
    "r_8m": ("r = 8m", "crest", {"subset_size": 8}),
    "regions": ("coresets kept in regions", "crest", {"regions": True}),
    "logits": ("logit embedding", "crest", {"embedding": "logits"}),
    "sketch": ("sketched full gradient", "crest", {"embedding": "sketch"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What to run."""

    setting: str = "imbalanced_mlp"
    """A setting of experiments.presets."""
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
        check_setting(self.setting, SETTINGS)
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
    _, method, changed = VARIANTS[variant]
    base = SETTINGS[config.setting].options(method, seed)
    if "subset_size" in changed:  # named in mini-batches
        changed = changed | {"subset_size": changed["subset_size"] * base.batch_size}
    if "exclusion" in changed:  # over the setting's own
        own = dataclasses.replace(base.crest.exclusion, cooldown=changed["exclusion"].cooldown)
        changed = changed | {"exclusion": own}
    if changed.get("exclude") is False:
        changed = changed | {"exclusion": ExclusionOptions()}
    folder = config.out / f"{variant}-seed{seed}"
    return dataclasses.replace(
        base,
        crest=dataclasses.replace(base.crest, **changed),
        data=dataclasses.replace(base.data, evaluate_on=config.evaluate_on),
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
    header = [
        "what",
        "accuracy %",
        "difference to CREST, points",
        "difference to stratified, points",
        "seconds",
        "cost in training steps",
    ]
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
            made = made_by(__file__, argv, runs, config.jobs)
            made += f", {len(config.seeds)} seeds, {runs[0]['steps']} steps"
            text = summarise(config, runs)
            (config.out / "summary.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
