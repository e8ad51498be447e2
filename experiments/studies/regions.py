"""Whether the regions of CREST tell the truth, and what they cost: the quadratic model at its checks.

    python -m experiments.studies.regions --setting long_mlp --jobs 2 --out runs/regions

Coresets are kept in regions, by three forms of the quadratic model, and chosen anew at every step. At
every check the model's relative error rho is set beside that of a model that predicts no change: one
that is worse tells nothing. The folder gets one run folder per run, ``summary.jsonl`` and
``summary.md``. A run that is there already is not run again.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.harness.cli import one_sentence
from experiments.harness.options import DROPS
from experiments.harness.records import table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import median_seconds, with_interval, work_in_steps
from experiments.studies.variants import (
    VARIANTS,
    Run,
    VariantConfig,
    run_variants,
    write_summary,
)


@dataclasses.dataclass(frozen=True)
class RegionsConfig(VariantConfig):
    """What to run."""

    setting: str = "long_mlp"
    """A setting of experiments.presets."""
    variants: tuple[str, ...] = (
        "stratified", "medoids_4m_logits", "regions_4m", "diagonal_model", "paper_model", "paper",
    )  # fmt: skip
    """Which ways of choosing; those without regions are there for their accuracy and cost."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds of every run."""
    out: Path = Path("runs/regions")
    """Folder of all runs."""


def checks_of(run: Run) -> np.ndarray:
    """Return rho, and what it were without change, at every check of a run, [k, 2].

    >>> rows = [{"rho": 0.1, "rho_unchanged": 0.2}, {"rho": None, "rho_unchanged": None}]
    >>> checks_of({"checks": rows}).tolist()
    [[0.1, 0.2]]
    """
    pairs = [(row["rho"], row["rho_unchanged"]) for row in run["checks"] if row["rho"] is not None]
    return np.array(pairs, float).reshape(-1, 2)


def lengths_of(run: Run) -> tuple[list[int], list[int]]:
    """Return the lengths of the regions that begin before the first drop of the rate, and after it.

    >>> begun = [{"step": 0}, {"step": 4}, {"step": 60}]
    >>> lengths_of({"steps": 100, "checks": [row | {"began_region": True} for row in begun]})
    ([4, 56], [40])
    """
    steps, drop = run["steps"], DROPS[0] * run["steps"]
    begun = [row["step"] for row in run["checks"] if row["began_region"]]
    pairs = list(zip(begun, [*begun[1:], steps][: len(begun)], strict=True))
    early = [end - start for start, end in pairs if start < drop]
    return early, [end - start for start, end in pairs if start >= drop]


def _quartiles(values: Any) -> str:
    if not len(values):
        return "-"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def summarise(config: RegionsConfig, runs: list[Run]) -> str:
    """Return the table."""
    plain = [run for run in runs if run["variant"] == "stratified"]
    rows = []
    for name in config.variants:
        own = [run for run in runs if run["variant"] == name]
        checks = [pairs for pairs in map(checks_of, own) if len(pairs)]
        together = np.concatenate(checks) if checks else np.zeros((0, 2))
        better = [100 * float(np.mean(pairs[:, 0] < pairs[:, 1])) for pairs in checks]
        lengths = [list(chain(*found)) for found in zip(*map(lengths_of, own), strict=True)]
        cost = [work_in_steps(run) / run["steps"] for run in own]
        seconds = median_seconds(own)
        base = median_seconds(plain) if plain else np.nan
        rows.append(
            [
                VARIANTS[name].text,
                with_interval([100 * run["curve"][-1]["accuracy"] for run in own]),
                _quartiles(together[:, 0]),
                _quartiles(together[:, 1]),
                with_interval(better),
                *map(_quartiles, lengths),
                f"{np.median(cost):.2f}",
                f"{seconds / base:.2f}" if plain else "-",
            ]
        )
    header = [
        "coresets", "accuracy %", "rho at checks", "rho of no change", "checks that beat it, %",
        "steps of a region, before the first drop", "after it", "cost, steps", "cost, seconds",
    ]  # fmt: skip
    return table(header, rows)


EXPLANATION = """
± is the 95 % interval over seeds (Student's t); brackets are quartiles over all checks or regions of
all seeds. A region ends at the first check with rho above tau. Costs are over those of stratified
batches.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(RegionsConfig, args=argv, description=__doc__)
        with held_folder(config.out):
            pairs = [(name, seed) for seed in config.seeds for name in config.variants]
            runs = run_variants(config, [(name, config.options(name, seed)) for name, seed in pairs])
            write_summary(__file__, argv, config, runs, summarise(config, runs), EXPLANATION)


if __name__ == "__main__":
    main()
