"""The equivalent batch: how large a stratified batch does as well as a coreset, and at what cost.

    python -m experiments.studies.equivalent --setting long_mlp --jobs 2 --out runs/equivalent

Stratified batches of 1, 2, 4 times the size are trained for equally many steps, beside ways of
choosing coresets. The *equivalent batch* of a method is the size, in mini-batches, at which stratified
batches reach its accuracy, interpolated in the logarithm of the size. Over the method's cost, in
training steps or in seconds of stratified batches of one size, it says whether the method pays: above 1
it does better than a larger batch for the same cost. The folder gets one run folder per run,
``summary.jsonl`` and ``summary.md``. A run that is there already is not run again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments.config import Method, TrainConfig
from experiments.harness.build import load_sources
from experiments.harness.cli import UserError, check_setting, one_sentence
from experiments.harness.options import ExclusionOptions
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import held_folder
from experiments.harness.stats import with_interval, work_in_steps
from experiments.presets import SETTINGS
from experiments.sweep import made_by, run_all

Run = dict[str, Any]
THROUGHOUT: dict[str, Any] = {"select_span": (0.0, 1.0), "exclude": False}
RESAMPLES = 2000
# What to call it, the method, the preset, and what of the settings of CREST is changed; subsets are
# named in mini-batches.
VARIANTS: dict[str, tuple[str, Method, Literal["recommended", "paper"], dict[str, Any]]] = {
    "crest": ("CREST (recommended)", "crest", "recommended", {}),
    "paper": ("CREST (paper)", "crest", "paper", {}),
    "importance_2m": ("by length, r = 2m", "crest", "recommended", THROUGHOUT | {"subset_size": 2}),
    "importance_4m": ("by length, r = 4m", "crest", "recommended", THROUGHOUT | {"subset_size": 4}),
    "medoids_2m": (
        "medoids, r = 2m", "crest", "recommended", THROUGHOUT | {"subset_size": 2, "picks": "medoids"},
    ),
    "medoids_4m": (
        "medoids, r = 4m", "crest", "recommended", THROUGHOUT | {"subset_size": 4, "picks": "medoids"},
    ),
    "regions_4m": (
        "medoids in regions, r = 4m", "crest", "recommended",
        THROUGHOUT | {"subset_size": 4, "picks": "medoids", "regions": True, "embedding": "logits"},
    ),
    "dynamic_pruning": ("dynamic pruning", "dynamic_pruning", "recommended", {}),
    "top_loss": ("highest losses of 2m", "top_loss", "recommended", {}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EquivalentConfig:
    """What to run."""

    setting: str = "long_mlp"
    """A setting of experiments.presets."""
    sizes: tuple[int, ...] = (1, 2, 4)
    """Sizes of stratified batches, in mini-batches of the setting; 1 is among them."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which ways of choosing."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of every run."""
    rate: float | None = None
    """Learning rate of all methods; None: those of the setting."""
    norm: Literal["weighted_batch", "batch", "group"] | None = None
    """Normalisation of a residual network; None: that of the setting."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Rows that the evaluations take."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""
    out: Path = Path("runs/equivalent")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_setting(self.setting, SETTINGS)
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise UserError(
                f"--variants holds {', '.join(unknown)} but must be of {', '.join(VARIANTS)}; choose "
                "among these."
            )
        if len(self.sizes) < 2 or 1 not in self.sizes or min(self.sizes) < 1:
            raise UserError(
                f"--sizes is {self.sizes} but must hold 1 and at least one larger size; 1 2 4 is usual."
            )
        if self.jobs < 1 or not self.seeds:
            raise UserError(
                f"--jobs is {self.jobs} and --seeds {self.seeds} but there must be one of each."
            )

    def base(self, method: Method, seed: int) -> TrainConfig:
        """Return the options of a run as the setting has them."""
        own = SETTINGS[self.setting].options(method, seed)
        if self.rate is not None:
            own = dataclasses.replace(
                own, optim=dataclasses.replace(own.optim, learning_rate=self.rate)
            )
        if self.norm is not None:
            own = dataclasses.replace(own, network=dataclasses.replace(own.network, norm=self.norm))
        return dataclasses.replace(
            own, data=dataclasses.replace(own.data, evaluate_on=self.evaluate_on)
        )


def larger(base: TrainConfig, size: int, count: int) -> TrainConfig:
    """Return the options of as many steps with mini-batches so many times as large.

    >>> base = TrainConfig(epochs=10, budget=0.1, batch_size=100)
    >>> more = larger(base, 4, 1050)
    >>> more.batch_size, more.steps(1050) == base.steps(1050)
    (400, True)
    """
    found = dataclasses.replace(base, batch_size=size * base.batch_size, epochs=size * base.epochs)
    share = base.steps(count) / found.full_steps(count)
    while share > 1:
        found = dataclasses.replace(found, epochs=2 * found.epochs)
        share = base.steps(count) / found.full_steps(count)
    return dataclasses.replace(found, budget=share)


def options_of(config: EquivalentConfig, name: str, seed: int, count: int) -> TrainConfig:
    """Return the options of one run; ``name`` is a variant, or a size."""
    if name.isdigit():
        made = larger(config.base("stratified", seed), int(name), count)
    else:
        _, method, preset, changes = VARIANTS[name]
        made = config.base(method, seed)
        if "subset_size" in changes:
            changes = changes | {"subset_size": changes["subset_size"] * made.batch_size}
        if changes.get("exclude") is False:
            changes = changes | {"exclusion": ExclusionOptions()}
        preset = preset if method == "crest" else made.preset
        made = dataclasses.replace(
            made, preset=preset, crest=dataclasses.replace(made.crest, **changes)
        )
    folder = config.out / f"{'stratified-' if name.isdigit() else ''}{name}-seed{seed}"
    return dataclasses.replace(made, out=folder, resume=folder.exists())


def equivalent(accuracy: float, sizes: Sequence[int], reached: Sequence[float]) -> float:
    """Return the size of a stratified batch that reaches an accuracy; NaN where size changes nothing.

    Linear in the logarithm of the size, beyond the sizes along the nearest two; from 1/4 to four times
    the largest.

    Args:
      accuracy: of the method.
      sizes: rising.
      reached: accuracies at these sizes.

    >>> equivalent(88.5, (1, 2, 4), (88.0, 89.0, 89.5)), equivalent(90.0, (1, 2, 4), (88.0, 89.0, 89.5))
    (1.4142135623730951, 8.0)
    """
    logs, best = np.log2(np.asarray(sizes, float)), np.maximum.accumulate(reached)
    if best[-1] == best[0]:
        return float("nan")
    place = int(np.clip(np.searchsorted(best, accuracy), 1, len(best) - 1))
    rise = max(float(best[place] - best[place - 1]), 1e-9)
    slope = (logs[place] - logs[place - 1]) / rise
    found = logs[place - 1] + slope * (accuracy - best[place - 1])
    return float(2.0 ** np.clip(found, -2.0, logs[-1] + 2.0))


def _with_ends(size: float, ends: np.ndarray, cost: float) -> str:
    """Return a size over a cost with its interval."""
    if np.isnan(size):
        return "a larger batch gains nothing"
    return f"{size / cost:.2f} [{ends[0] / cost:.2f}, {ends[1] / cost:.2f}]"


def summarise(config: EquivalentConfig, runs: list[Run]) -> str:
    """Return the table."""
    sizes = sorted(config.sizes)
    names = [*map(str, sizes), *config.variants]
    metric = f"{config.evaluate_on}_accuracy"
    values = {
        name: np.array([100 * run[metric] for run in runs if run["variant"] == name]) for name in names
    }
    plain = [run for run in runs if run["variant"] == "1"]
    work, seconds = (
        {
            name: float(np.median([measure(run) for run in runs if run["variant"] == name]))
            / float(np.median([measure(run) for run in plain]))
            for name in names
        }
        for measure in (work_in_steps, lambda run: run["training_seconds"])
    )
    work |= {str(size): float(size) for size in sizes}  # a larger batch is so many steps
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(config.seeds), len(config.seeds)) for _ in range(RESAMPLES)]

    def sizes_of(name: str) -> tuple[float, np.ndarray]:
        mean = equivalent(values[name].mean(), sizes, [values[str(s)].mean() for s in sizes])
        again = [
            equivalent(values[name][i].mean(), sizes, [values[str(s)][i].mean() for s in sizes])
            for i in draws
        ]
        return mean, np.nanquantile(again, [0.025, 0.975]) if np.isfinite(again).any() else np.zeros(2)

    rows = []
    for name in names:
        size, ends = sizes_of(name)
        gain = "-" if name == "1" else with_interval(list(values[name] - values["1"]), sign="+")
        rows.append(
            [
                f"stratified, {name}m" if name.isdigit() else VARIANTS[name][0],
                with_interval(list(values[name])),
                gain,
                f"{work[name]:.2f}",
                f"{seconds[name]:.2f}",
                "-" if name.isdigit() else _with_ends(size, ends, 1.0),
                *(
                    f"{int(name) / cost[name]:.2f}"
                    if name.isdigit()
                    else _with_ends(size, ends, cost[name])
                    for cost in (work, seconds)
                ),
            ]
        )
    header = [
        "batches", "accuracy %", "over stratified, points", "cost, steps", "cost, seconds",
        "equivalent batch, m", "over its cost in steps", "in seconds",
    ]  # fmt: skip
    return table(header, rows)


EXPLANATION = """
All take equally many steps. ± is the 95 % interval over seeds (Student's t), differences are paired by
seed; brackets are 95 % intervals of a bootstrap over seeds. Costs are those of a run over that of
stratified batches of m: all work of the training counted, a backward pass as two forward; and medians
of its seconds without evaluation and compilation.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(EquivalentConfig, args=argv, description=__doc__)
        count = len(load_sources(config.base("stratified", 0))[1])
        with held_folder(config.out):
            names = [*map(str, sorted(config.sizes)), *config.variants]
            # Seed by seed, so that all variants see the same machine.
            pairs = [(name, seed) for seed in config.seeds for name in names]
            found = run_all(
                [options_of(config, name, seed, count) for name, seed in pairs], config.jobs
            )
            runs = [{**run, "variant": name} for run, (name, _) in zip(found, pairs, strict=True)]
            lines = config.out / "summary.jsonl"
            lines.unlink(missing_ok=True)
            for run in runs:  # checks are in each run's folder
                append_line(lines, {name: value for name, value in run.items() if name != "checks"})
            made = made_by(__file__, argv, runs, config.jobs)
            made += f", {len(config.seeds)} seeds, {runs[0]['steps']} steps"
            text = summarise(config, runs)
            (config.out / "summary.md").write_text(f"{made}\n\n{text}\n{EXPLANATION}", encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
