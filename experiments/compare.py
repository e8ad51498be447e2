"""Run several methods side by side on one data set, over seeds: a table, JSON lines and a picture.

    python -m experiments.compare --setting first_run --out runs/first

Runs go one after the other in one process, seed by seed, with the methods alternating, so that they
see the same machine; a method is compiled in its first run only. ``--jobs 2`` runs two at a time, each
in a process of its own with its share of the cores. A run that is there already is not run again, so an
interrupted comparison goes on where it was. The folder gets one run folder per method, budget and seed,
``summary.md`` (the table), ``summary.jsonl`` (its numbers) and ``accuracy.png``.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.config import Method, TrainConfig
from experiments.data import OWN_DATASETS
from experiments.harness.build import load_data
from experiments.harness.cli import UserError, named_setting, one_sentence, parse
from experiments.harness.conclusion import in_words
from experiments.harness.inputs import inputs_of
from experiments.harness.records import append_line, table
from experiments.harness.report_figures import accuracy_figure
from experiments.harness.report_tables import method_table
from experiments.harness.run_folder import check_inputs, held_folder
from experiments.presets import SETTINGS
from experiments.sweep import made_by, run_all


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What to run; every option of a single run can be given too."""

    methods: tuple[Method, ...] = ("full", "random", "stratified", "crest")
    """Methods to compare."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the methods that take the budget."""
    full_seeds: int | None = None
    """Full training takes only the first so many seeds; None: all."""
    budgets: tuple[float, ...] | None = None
    """Several budgets instead of --budget; full training is run once for all of them."""
    rates: dict[Method, float] = dataclasses.field(default_factory=dict)
    """Learning rates by method, "--rates craig 0.05 crest 0.2"; --optim.learning-rate for others."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(out=Path("runs/compare"))
    )
    """Options of each run; --out is the folder of all of them."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.methods or not self.seeds:
            raise UserError(
                "--methods and --seeds must name at least one each; leave them out for all."
            )
        self.run.refuse(
            ("method", "seed", "resume"), "use --methods and --seeds; runs resume by themselves"
        )
        if self.budgets is not None:
            self.run.refuse(("budget",), "--budgets names them all")
            if not self.budgets:
                raise UserError("--budgets must name at least one; leave it out for --budget.")
        unused = self.run.unused_by(self.methods)
        if unused is not None:
            raise UserError(unused)
        for method, rate in self.rates.items():
            if method not in self.methods or not 0 < rate < math.inf:
                raise UserError(
                    f"--rates has {method} {rate:g} but must name one of --methods with a finite "
                    "positive rate; correct it."
                )
        if self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs} but must be at least 1; 1 runs one at a time.")
        for name in ("methods", "seeds", "budgets"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise UserError(f"--{name} is {values} but must name each once; drop the repeats.")


def plan(config: CompareConfig) -> list[TrainConfig]:
    """Return the options of every run, seed by seed."""
    budgets = config.budgets or (config.run.budget,)
    runs = []
    for position, seed in enumerate(config.seeds):
        for method in config.methods:
            if method == "full" and config.full_seeds is not None and position >= config.full_seeds:
                continue
            for budget in budgets[:1] if method == "full" else budgets:
                own = f"-{budget:g}" if config.budgets and method != "full" else ""
                folder = config.run.out / f"{method}{own}-seed{seed}"
                run = config.run.for_method(method)
                rate = config.rates.get(method, run.optim.learning_rate)
                own_options = dataclasses.replace(
                    run, seed=seed, budget=budget, out=folder, resume=folder.exists(),
                    optim=dataclasses.replace(run.optim, learning_rate=rate),
                )  # fmt: skip
                runs.append(own_options)
    return runs


def check_data(runs: list[TrainConfig]) -> None:
    """Refuse to go on with runs that were made of other data than the user's own are now."""
    first = runs[0]
    if first.dataset in OWN_DATASETS:
        inputs = inputs_of(load_data(first.dataset, first.data), first.data)
        for run in runs:
            check_inputs(run.out, inputs)


# Columns that the terminal gets, where they say anything; the file has all.
SHOWN = (
    "method", "seeds", "steps", "accuracy, %", "difference to stratified, points", "seconds",
    "cost in training steps",
)  # fmt: skip
EXPLANATION = """
Accuracies are means over seeds; ± is the 95 % interval (Student's t); differences are paired by seed.
Seconds are medians: everything that training needs (steps, selection, curvature, checks, and "other":
all that is outside these), without evaluation, and without compilation, which stands apart (the
longest, paid once). "cost" counts all examples passed forward and backward, in training steps (a
backward pass as two forward ones). "rho" is the relative error of the quadratic model at the checks.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        setting, args = named_setting(argv, SETTINGS)
        default = CompareConfig()
        if setting is not None:
            default = CompareConfig(
                methods=setting.methods or default.methods,
                seeds=setting.seeds or default.seeds,
                run=dataclasses.replace(setting.run, out=default.run.out),
            )
        config = parse(CompareConfig, default=default, description=__doc__, argv=args)
        if setting is not None:
            own = {method: rate for method, rate in setting.rates.items() if method in config.methods}
            config = dataclasses.replace(config, rates=own | config.rates)
        out = config.run.out
        with held_folder(out):
            runs = plan(config)
            check_data(runs)
            results = run_all(runs, config.jobs)
            lines = out / "summary.jsonl"
            lines.unlink(missing_ok=True)
            for result in results:
                append_line(lines, result)
            head, *rows = method_table(results)
            source = made_by(__file__, argv, results, config.jobs)
            (out / "summary.md").write_text(
                f"{source}\n\n{table(head, rows)}\n{EXPLANATION}", encoding="utf-8"
            )
            figure = accuracy_figure(results)
            title = f"{config.run.dataset}, {config.run.model}, {len(config.seeds)} seed(s)"
            figure.suptitle(title, fontsize=11)
            figure.savefig(out / "accuracy.png", dpi=130)
            shown = [head.index(name) for name in SHOWN if any(row[head.index(name)] for row in rows)]
            short = [[row[place] for place in shown] for row in (head, *rows)]
            print(f"\n{table(short[0], short[1:])}\n")
            print("\n".join(in_words(results)))
            print(f"Picture: {out / 'accuracy.png'}; all columns: {out / 'summary.md'}.")
            print(f"Next: python -m experiments.report --runs {out} --out {out / 'report.html'}")


if __name__ == "__main__":
    main()
