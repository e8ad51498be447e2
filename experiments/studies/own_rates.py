"""Each way of choosing at a learning rate of its own.

    python -m experiments.studies.own_rates --setting mlp_20k --out runs/own_rates

Every method is trained at every rate and judged on validation rows, which are training rows that are
set aside; a rate at which a run diverges is out. At the rate that did best there, on other seeds, it is
judged on the test rows. The folder gets one run folder per run, ``summary.jsonl`` and ``summary.md``. A
run that is there already is not run again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import with_interval
from experiments.studies.equivalent import (
    EquivalentConfig,
    accuracies,
    lead,
    seconds_of,
    text_of,
    work_of,
)
from experiments.studies.variants import Run, run_variants, write_summary


@dataclasses.dataclass(frozen=True)
class OwnRatesConfig:
    """What to run."""

    setting: str = "mlp_20k"
    """A setting of experiments.presets."""
    variants: tuple[str, ...] = (
        "crest", "paper", "random", "dynamic_pruning", "top_loss", "craig", "gradmatch",
    )  # fmt: skip
    """Which ways of choosing."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes of stratified batches, in mini-batches of the setting; 1 is among them."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    """Learning rates to choose from."""
    validation_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs that rates are chosen by."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of the runs on the test rows."""
    out: Path = Path("runs/own_rates")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if len(set(self.rates)) < 2 or min(self.rates) <= 0:
            raise UserError(
                f"--rates is {self.rates} but must hold two positive rates or more, to choose from."
            )
        if set(self.seeds) & set(self.validation_seeds):
            raise UserError(
                f"--seeds {self.seeds} and --validation-seeds {self.validation_seeds} share one, but a "
                "rate must not be chosen on the seeds that it is judged on; take others."
            )
        self.at(self.rates[0], "validation")

    def at(self, rate: float, rows: Literal["test", "validation"]) -> EquivalentConfig:
        """Return what to run at one rate, on the seeds of validation or test rows."""
        return EquivalentConfig(
            setting=self.setting, variants=self.variants, sizes=self.sizes, rate=rate,
            evaluate_on=rows, out=self.out / f"{rows}_{rate:g}",
            seeds=self.validation_seeds if rows == "validation" else self.seeds,
        )  # fmt: skip


def run_if_it_can(config: EquivalentConfig, name: str, seed: int) -> list[Run]:
    """Return a run, or nothing where it diverges."""
    try:
        return run_variants(config, [(name, config.options(name, seed))])
    except FloatingPointError:
        return []


def run_all_of(config: OwnRatesConfig) -> list[Run]:
    """Run what is missing: all at every rate on validation rows, then each at its best on test rows."""
    found: dict[str, dict[float, float | None]] = {}
    names = config.at(config.rates[0], "validation").at_once
    for rate, name in tqdm([(r, n) for r in config.rates for n in names], "rates", unit="rate"):
        own = config.at(rate, "validation")
        runs = [run for seed in own.seeds for run in run_if_it_can(own, name, seed)]
        whole = len(runs) == len(own.seeds)
        value = float(accuracies(runs, name)[0].mean()) if whole else None
        found.setdefault(name, {})[rate] = value
    best = {}
    for name, by_rate in found.items():
        reached = [(value, rate) for rate, value in by_rate.items() if value is not None]
        if not reached:
            raise UserError(
                f"--rates is {config.rates} but {text_of(name)} diverges at all of them; add lower "
                "ones."
            )
        best[name] = max(reached, key=lambda pair: pair[0])[1]
    # Seed by seed, so that all methods see the same machine.
    judged = [
        run
        for seed in config.seeds
        for name, rate in best.items()
        for run in run_if_it_can(config.at(rate, "test"), name, seed)
    ]
    return [
        run | {"rate": best[run["variant"]], "validation": list(found[run["variant"]].items())}
        for run in judged
    ]


def summarise(runs: list[Run]) -> str:
    """Return the table."""
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        run, values = next(run for run in runs if run["variant"] == name), accuracies(runs, name)[0]
        others = ["diverges" if value is None else f"{value:.2f}" for _, value in run["validation"]]
        rows.append(
            [
                text_of(name),
                *others,
                f"{run['rate']:g}",
                str(len(values)),
                with_interval(list(values)),
                lead(runs, name, "1"),
                lead(runs, "crest", name),
                f"{work_of(runs, name) / work_of(runs, '1'):.2f}",
                f"{seconds_of(runs, name) / seconds_of(runs, '1'):.2f}",
            ]
        )
    rates = [f"at {rate:g}" for rate, _ in runs[0]["validation"]]
    header = [
        "batches", *rates, "rate", "seeds", "accuracy %", "over stratified, points",
        "CREST over it, points", "cost, steps", "cost, seconds",
    ]  # fmt: skip
    return table(header, rows)


EXPLANATION = """
"at": accuracy on validation rows in percent, mean over seeds, at that rate; "rate" is the best of them,
and what stands right of it is of test rows and other seeds, but for seeds that diverged. All take
equally many steps. ± is the 95 % interval over seeds (Student's t); differences are paired by seed.
Costs are those of a run over that of stratified batches of m. Seconds are medians, without evaluation
and compilation.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(OwnRatesConfig, args=argv, description=__doc__)
        with held_folder(config.out):
            runs = run_all_of(config)
            own = dataclasses.replace(config.at(config.rates[0], "test"), out=config.out)
            write_summary(__file__, argv, own, runs, summarise(runs), EXPLANATION)


if __name__ == "__main__":
    main()
