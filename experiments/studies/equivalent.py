"""The equivalent batch: how large a stratified batch does as well as a coreset, and at what cost.

    python -m experiments.studies.equivalent --setting long_mlp --jobs 2 --out runs/equivalent

Stratified batches of 1, 2, 4 times the size are trained for equally many steps, beside ways of
choosing coresets. The *equivalent batch* of a method is the size, in mini-batches, at which stratified
batches reach its accuracy, interpolated in the logarithm of the size. Over the size that costs as much,
by work or by seconds, it says whether the method pays: above 1 it does better than a larger batch for
the same cost. Then stratified batches get the seconds of CREST (recommended), once for more steps and
once for a larger batch. The folder gets one run folder per run,
``summary.jsonl`` and ``summary.md``. A run that is there already is not run again. Tables of several
settings: ``experiments.studies.settings_map``.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from experiments.config import TrainConfig
from experiments.harness.build import load_sources
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import (
    equivalent_batch,
    median_seconds,
    on_common_seeds,
    with_interval,
    work_in_steps,
)
from experiments.presets import larger, longer
from experiments.studies.variants import (
    VARIANTS,
    Run,
    VariantConfig,
    run_variants,
    write_summary,
)

RESAMPLES = 2000
# Stratified batches for the seconds of CREST (recommended): "factor" times the steps, or the batch.
AT_EQUAL_SECONDS = {"longer": "stratified, more steps", "larger": "stratified, a larger batch"}


@dataclasses.dataclass(frozen=True)
class EquivalentConfig(VariantConfig):
    """What to run."""

    setting: str = "long_mlp"
    """A setting of experiments.presets."""
    variants: tuple[str, ...] = (
        "crest", "paper", "random", "dynamic_pruning", "top_loss", "importance_4m", "medoids_4m",
        "regions_4m",
    )  # fmt: skip
    """Which ways of choosing."""
    sizes: tuple[int, ...] = (1, 2, 4)
    """Sizes of stratified batches, in mini-batches of the setting; 1 is among them."""
    equal_seconds: bool = True
    """Train stratified batches for the seconds of CREST (recommended), too."""
    timed: bool = True
    """Whether all runs had the same share of a machine, so that their seconds belong into the table."""
    only_done: bool = False
    """Run nothing: the table is of what --done holds, where variants may differ in their seeds."""
    out: Path = Path("runs/equivalent")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if self.only_done and not self.done:
            raise UserError("--only-done is given but --done names no folder; name those of the runs.")
        if len(self.sizes) < 2 or 1 not in self.sizes or min(self.sizes) < 1:
            raise UserError(
                f"--sizes is {self.sizes} but must hold 1 and at least one larger size; 1 2 4 is usual."
            )

    @property
    def at_once(self) -> list[str]:
        """Names of all that takes equally many steps and needs no measured seconds."""
        return [*map(str, sorted(self.sizes)), *self.variants]

    def options(self, name: str, seed: int) -> TrainConfig:
        """Return the options of one run; ``name`` is a variant, or a size."""
        if not name.isdigit():
            return super().options(name, seed)
        made = larger(self.base("stratified", seed), int(name), rows_of(self))
        return self.in_folder(made, f"stratified-{name}")

    def for_seconds(self, name: str, seed: int, factor: float) -> TrainConfig:
        """Return the options of one run of ``AT_EQUAL_SECONDS``."""
        base = self.base("stratified", seed)
        made = longer(base, factor) if name == "longer" else larger(base, factor, rows_of(self))
        return self.in_folder(made, f"{name}-{factor:g}")


@functools.cache
def rows_of(config: EquivalentConfig) -> int:
    """Return the number of training examples."""
    return len(load_sources(config.base("stratified", 0))[1])


def factors(runs: list[Run]) -> dict[str, float]:
    """Return how many times the steps, and how many times the batch, take the seconds of CREST.

    They are rounded, so that a resumed comparison finds the runs that it has begun.
    """
    longer = seconds_of(runs, "crest") / seconds_of(runs, "1")
    return {"longer": round(longer, 2), "larger": round(as_long(runs, "crest"), 2)}


def as_long(runs: list[Run], name: str) -> float:
    """Return the size of stratified batches, in mini-batches, that take as long as a variant.

    It is interpolated, since large batches often take less than their share of time; beyond the largest
    size that was run it is in proportion to the seconds. It is never below 1.

    >>> runs = [{"variant": v, "training_seconds": s} for v, s in (("1", 1), ("2", 1.5), ("4", 2.5))]
    >>> as_long([*runs, {"variant": "crest", "training_seconds": 1.75}], "crest")
    2.5
    """
    sizes, own = sizes_of(runs), seconds_of(runs, name)
    taken = np.maximum.accumulate([seconds_of(runs, str(size)) for size in sizes])
    if own > taken[-1]:
        return float(sizes[-1] * own / taken[-1])
    return float(np.interp(own, taken, sizes))


def seconds_of(runs: list[Run], name: str) -> float:
    """Return the median seconds of a variant."""
    return median_seconds([run for run in runs if run["variant"] == name])


def work_of(runs: list[Run], name: str) -> float:
    """Return the median work of a variant, in examples trained on."""
    own = [run for run in runs if run["variant"] == name]
    return float(np.median([work_in_steps(run) * run["forward"]["step"] / run["steps"] for run in own]))


def accuracies(runs: list[Run], *names: str) -> np.ndarray:
    """Return the accuracies of variants at the end, in percent, on the seeds that all have.

    Returns:
      [variants, seeds].

    >>> runs = [{"variant": v, "seed": s, "curve": [{"accuracy": 0.5}]} for v, s in ("a0", "a1", "b1")]
    >>> accuracies(runs, "a", "b").tolist()
    [[50.0], [50.0]]
    """
    return on_common_seeds(
        *(
            {run["seed"]: 100 * run["curve"][-1]["accuracy"] for run in runs if run["variant"] == name}
            for name in names
        )
    )


def leads(runs: list[Run], name: str, other: str) -> list[float]:
    """Return the points by which a variant is ahead of another, by seed."""
    own, others = accuracies(runs, name, other)
    return list(own - others)


def lead(runs: list[Run], name: str, other: str) -> str:
    """Return the same with its interval; "-" where one of them was not run."""
    if name == other or not {name, other} <= {run["variant"] for run in runs}:
        return "-"
    return with_interval(leads(runs, name, other), sign="+")


def text_of(name: str) -> str:
    """Return what to call a variant, or a size of stratified batches.

    >>> text_of("2"), text_of("craig")
    ('stratified, 2m', 'CRAIG')
    """
    if name.isdigit():
        return f"stratified, {name}m"
    return AT_EQUAL_SECONDS.get(name) or VARIANTS[name].text


def leads_for_seconds(runs: list[Run], name: str) -> list[float]:
    """Return the points by which a variant is ahead of a batch that takes as long, by seed.

    What that batch reaches is interpolated in the logarithm of the size.
    """
    sizes, size = sizes_of(runs), as_long(runs, name)
    own, *others = accuracies(runs, name, *map(str, sizes))
    reached = [np.interp(math.log(size), np.log(sizes), values) for values in zip(*others, strict=True)]
    return list(own - reached)


@dataclasses.dataclass(frozen=True)
class Worth:
    """What a way of choosing is worth.

    Attributes:
      work: its cost in training steps of stratified batches, over theirs.
      seconds: its seconds over theirs.
      as_long: the size of stratified batches that take as long, in mini-batches.
      size: the equivalent batch, in mini-batches; NaN where a larger batch gains nothing.
      low: lower end of its 95 % interval; NaN with one seed.
      high: upper end.
    """

    work: float
    seconds: float
    as_long: float
    size: float
    low: float
    high: float

    def text(self, cost: float) -> str:
        """Return the size over a cost, with its interval."""
        if math.isnan(self.size):
            return "a larger batch gains nothing"
        if math.isnan(self.low):
            return f"{self.size / cost:.2f}"
        return f"{self.size / cost:.2f} [{self.low / cost:.2f}, {self.high / cost:.2f}]"


def sizes_of(runs: list[Run]) -> list[int]:
    """Return the sizes of stratified batches among the runs, rising."""
    return sorted({int(run["variant"]) for run in runs if run["variant"].isdigit()})


def worth_of(runs: list[Run], name: str) -> Worth:
    """Weigh a variant against the stratified batches among the runs."""
    sizes = sizes_of(runs)
    plain = work_of(runs, "1"), seconds_of(runs, "1")
    own, *others = accuracies(runs, name, *map(str, sizes))
    rng = np.random.default_rng(0)
    picks = [np.arange(len(own)), *rng.integers(0, len(own), (RESAMPLES, len(own)))]
    found = [equivalent_batch(own[i].mean(), sizes, [x[i].mean() for x in others]) for i in picks]
    several = len(own) > 1  # one seed has no interval
    ends = (
        np.nanquantile(found[1:], [0.025, 0.975])
        if several and np.isfinite(found[1:]).any()
        else (math.nan,) * 2
    )
    costs = work_of(runs, name) / plain[0], seconds_of(runs, name) / plain[1], as_long(runs, name)
    return Worth(*costs, found[0], *map(float, ends))


def beside_full(runs: list[Run], name: str) -> str:
    """Return the relative error to full training, in percent.

    >>> runs = [{"variant": v, "seed": 0, "curve": [{"accuracy": a}]}
    ...         for v, a in (("full", 0.8), ("crest", 0.6))]
    >>> beside_full(runs, "crest")
    '25.00'
    """
    full = accuracies(runs, "full")[0].mean()
    return with_interval(list(100 * (1 - accuracies(runs, name)[0] / full)))


def is_timed(runs: list[Run]) -> bool:
    """Return whether the seconds of runs mean anything; see ``EquivalentConfig.timed``."""
    return all(run.get("timed", True) for run in runs)


def summarise(runs: list[Run]) -> str:
    """Return the table, of work only where the runs are not timed."""
    timed = is_timed(runs)
    names = list(dict.fromkeys(run["variant"] for run in runs))
    rows = []
    for name in names:
        worth, sized = worth_of(runs, name), name.isdigit()
        if name == "full":
            over = ["-", "-", "-"]
        elif sized:
            over = ["-", *(f"{int(name) / cost:.2f}" for cost in (worth.work, worth.as_long))]
        else:
            over = [worth.text(cost) for cost in (1.0, worth.work, worth.as_long)]
        values = accuracies(runs, name)[0]
        cells = {
            "batches": text_of(name),
            "seeds": str(len(values)),
            "accuracy %": with_interval(list(values)),
            "over stratified, points": lead(runs, name, "1"),
            "CREST over it, points": lead(runs, "crest", name),
        }
        if "full" in names:
            cells["relative error to full, %"] = "-" if name == "full" else beside_full(runs, name)
        cells["cost, steps"] = f"{worth.work:.2f}"
        if timed:
            cells["cost, seconds"] = f"{worth.seconds:.2f}"
            cells["batch that takes as long, m"] = f"{worth.as_long:.2f}"
        cells |= {"equivalent batch, m": over[0], "over its cost in steps": over[1]}
        if timed:
            cells["over the batch that takes as long"] = over[2]
        rows.append(cells)
    return table(list(rows[0]), [list(cells.values()) for cells in rows])


EXPLANATION = """
All take equally many steps, but for full training and for "more steps", which like "a larger batch" is
stratified batches for the seconds of CREST (recommended). ± is the 95 % interval over seeds (Student's
t); differences are paired by seed; brackets are 95 % intervals of a bootstrap over seeds. Costs are
those of a run over that of stratified batches of m: all work of the training counted, a backward pass
as two forward.
"""
OF_SECONDS = "Seconds are medians, without evaluation and compilation.\n"


def of_done(config: EquivalentConfig) -> list[Run]:
    """Return the runs of the folders that are done, each once, in the order of the table."""
    known = {key: run for key, run in config.earlier().items() if run["seed"] in config.seeds}
    held = {name for name, _ in known}
    missing = [name for name in config.at_once if name not in held]
    if missing:
        raise UserError(
            f"--done holds no runs of {', '.join(missing)} with the seeds {config.seeds}; run them "
            "first, or leave them out."
        )
    return [run for name in config.at_once for (own, _), run in known.items() if own == name]


def run_all_of(config: EquivalentConfig) -> list[Run]:
    """Run what is missing: all at equal steps, then stratified batches for CREST's seconds."""
    if config.only_done:
        return of_done(config)
    # Seed by seed, so that all variants see the same machine.
    planned = [(n, config.options(n, seed)) for seed in config.seeds for n in config.at_once]
    runs = run_variants(config, planned)
    if not config.equal_seconds or "crest" not in config.variants:
        return runs
    earlier = {run["variant"]: run["factor"] for run in config.earlier().values() if "factor" in run}
    wanted = factors(runs) | earlier
    if min(wanted.values()) <= 1:
        return runs
    again = [
        (name, config.for_seconds(name, seed, wanted[name]))
        for seed in config.seeds
        for name in AT_EQUAL_SECONDS
    ]
    return runs + [run | {"factor": wanted[run["variant"]]} for run in run_variants(config, again)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(EquivalentConfig, args=argv, description=__doc__)
        with held_folder(config.out):
            runs = run_all_of(config)
            if not config.timed:
                runs = [run | {"timed": False} for run in runs]
            notes = EXPLANATION + (OF_SECONDS if is_timed(runs) else "")
            write_summary(__file__, argv, config, runs, summarise(runs), notes)


if __name__ == "__main__":
    main()
