"""Run several methods side by side on one data set, over seeds: a table, JSON lines and a picture.

    python -m experiments.compare --out runs/first

Runs go one after the other in one process, seed by seed, with the methods alternating, so that they
see the same machine; a method is compiled in its first run only. ``--jobs 2`` runs two at a time, each
in a process of its own with its share of the cores. A run that is there already is not run again, so an
interrupted comparison goes on where it was. The folder gets one run folder per method, budget and seed,
``summary.md`` (the table), ``summary.jsonl`` (its numbers) and ``accuracy.png``.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import stats
from tqdm import tqdm

from crest_jax.report import append_line, read_lines, table
from experiments.config import Method, TrainConfig, UserError
from experiments.plots import plot_accuracy
from experiments.run_folder import held_folder
from experiments.timing import TRAINING
from experiments.train import one_sentence, run

SPLIT = (*TRAINING, "other")
# Workers read these: only the bar over all runs is shown, and no worker takes a whole GPU's memory.
FOR_WORKERS = {"TQDM_DISABLE": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


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
    """Learning rates by method, "--rates craig 0.05 crest 0.2"; --learning-rate for the others."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""
    run: tyro.conf.OmitArgPrefixes[tyro.conf.SuppressFixed[TrainConfig]] = dataclasses.field(
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
                own_options = dataclasses.replace(
                    config.run, method=method, seed=seed, budget=budget, out=folder,
                    learning_rate=config.rates.get(method, config.run.learning_rate),
                    resume=folder.exists(),
                )  # fmt: skip
                runs.append(own_options)
    return runs


def run_all(runs: list[TrainConfig], jobs: int) -> list[dict[str, Any]]:
    """Run what is missing, ``jobs`` at a time, and return the metrics of every run in their order."""
    with tqdm(total=len(runs), desc="runs", unit="run") as bar:
        if jobs == 1:
            found = []
            for options in runs:
                found.append(_one(options))
                bar.update()
            return found
        return _at_once(runs, jobs, bar)


def _one(options: TrainConfig) -> dict[str, Any]:
    metrics = run(options)
    rows = read_lines(options.out / "events.jsonl")
    curve = [row for row in rows if row["kind"] == "evaluation"]
    checks = [row for row in rows if row["kind"] == "selection"]
    return {**metrics, "budget": options.budget, "curve": curve, "checks": checks}


def _at_once(runs: list[TrainConfig], jobs: int, bar: tqdm) -> list[dict[str, Any]]:
    """Run several at a time, each worker on cores of its own; the first failure stops the rest."""
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in FOR_WORKERS}
    os.environ.update(FOR_WORKERS)
    cores = context.Queue()
    for share in _cores(jobs):
        cores.put(share)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _settle, (cores,)) as pool:
        waiting = [pool.submit(_one, options) for options in runs]
        try:
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
        return [one.result() for one in waiting]


def _cores(jobs: int) -> Iterator[set[int]]:
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for job in range(jobs):
        yield set(usable[job % len(usable) :: jobs])


def _settle(cores: Any) -> None:
    """Pin a worker to its cores, and let it end when the program that began it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    own = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval (Student's t); NaN for one value.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * spread)


def paired(results: list[dict[str, Any]], method: str, other: str, name: str) -> list[float]:
    """Return the differences of one number between two methods, on the seeds that both have.

    ``results`` are of one budget.
    """
    by_seed = {m: {r["seed"]: r[name] for r in results if r["method"] == m} for m in (method, other)}
    common = sorted(by_seed[method].keys() & by_seed[other].keys())
    return [by_seed[method][seed] - by_seed[other][seed] for seed in common]


def with_interval(values: Sequence[float], *, scale: float = 1.0, sign: str = "") -> str:
    """Return a mean with its 95 % interval, times ``scale``.

    >>> with_interval([0.01, 0.02, 0.03], scale=100, sign="+")
    '+2.00 ± 2.48'
    """
    if not values:
        return "-"
    mean, half = interval(values)
    text = f"{scale * mean:{sign}.2f}"
    return text if np.isnan(half) else f"{text} ± {scale * half:.2f}"


def summarise(config: CompareConfig, results: list[dict[str, Any]]) -> str:
    """Return the table: accuracy, paired differences, time and its split, work, regions."""
    name = f"{config.run.evaluate_on}_accuracy"
    budgets = config.budgets or (config.run.budget,)
    full = [r["training_seconds"] for r in results if r["method"] == "full"]
    header = [
        "method", "seeds", "steps", "accuracy %", "minus random", "minus stratified", "seconds",
        "faster than full", *SPLIT, "compile", "work", "regions", "median rho",
    ]  # fmt: skip
    rows = []
    for budget, method in itertools.product(budgets, config.methods):
        if method == "full" and budget != budgets[0]:
            continue
        own = [r for r in results if r["budget"] == budget]
        runs = [r for r in own if r["method"] == method]
        seconds = float(np.median([r["training_seconds"] for r in runs]))
        split = [float(np.median([r["seconds"][phase] for r in runs])) for phase in SPLIT]
        rows.append(
            [
                method,
                str(len(runs)),
                str(runs[0]["steps"]),
                with_interval([r[name] for r in runs], scale=100),
                *(
                    "-"
                    if method in (other, "full")
                    else with_interval(paired(own, method, other, name), scale=100, sign="+")
                    for other in ("random", "stratified")
                ),
                f"{seconds:.1f}",
                f"{np.median(full) / seconds:.2f}" if full else "-",
                *(f"{value:.1f}" for value in split),
                f"{max(r['seconds']['compile'] for r in runs):.1f}",
                f"{np.median([work_in_steps(r) for r in runs]):.0f}",
                *_regions(runs),
            ]
        )
    return table(header, rows)


def _regions(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the regions and the relative error of their models at the checks, as medians."""
    if "regions" not in runs[0]:
        return "-", "-"
    errors = [row["rho"] for r in runs for row in r["checks"] if row["rho"] is not None]
    regions = np.median([r["regions"] for r in runs])
    return f"{regions:.0f}", f"{np.median(errors):.3f}" if errors else "-"


def work_in_steps(metrics: dict[str, Any]) -> float:
    """Return all work but evaluation in training steps, a backward pass counted as two forward.

    >>> work_in_steps({"steps": 2, "forward": {"step": 20, "evaluation": 5}, "backward": {"step": 20}})
    2.0
    """
    forward = sum(value for phase, value in metrics["forward"].items() if phase != "evaluation")
    backward = sum(metrics["backward"].values())
    batch = metrics["forward"]["step"] / metrics["steps"]
    return (forward + 2 * backward) / (3 * batch)


def command_line(script: str, argv: Sequence[str] | None = None) -> str:
    """Return the command that the program was started with, or that ``argv`` stands for."""
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", f"experiments.{script}", *arguments])


def made_by(script: str, argv: Sequence[str] | None, results: list[dict[str, Any]], jobs: int) -> str:
    """Return the line that says how results were made: command, commits and machine."""
    commits = ", ".join(sorted({str(result["commit"]) for result in results}))
    return (
        f"`{command_line(script, argv)}` at commit {commits}, on {results[0]['device']}, "
        f"{os.cpu_count()} cores, {jobs} run(s) at a time"
    )


EXPLANATION = """
Accuracies are means over seeds; ± is the 95 % interval (Student's t); differences are paired by seed.
Seconds are medians: everything that training needs (steps, selection, curvature, checks, and "other":
all that is outside these), without evaluation, and without compilation, which stands apart (the
longest, paid once). "work" counts all examples passed forward and backward, in training steps (a
backward pass as two forward ones). "rho" is the relative error of the quadratic model at the checks.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the runs that are missing."):
        config = tyro.cli(CompareConfig, args=argv, description=__doc__)
        out = config.run.out
        with held_folder(out):
            results = run_all(plan(config), config.jobs)
            lines = out / "summary.jsonl"
            lines.unlink(missing_ok=True)
            for result in results:
                append_line(lines, result)
            text = summarise(config, results)
            source = made_by("compare", argv, results, config.jobs)
            (out / "summary.md").write_text(f"{source}\n\n{text}\n{EXPLANATION}", encoding="utf-8")
            title = f"{config.run.dataset}, {config.run.model}, {len(config.seeds)} seed(s)"
            first = results[0]["budget"]
            shown = [r for r in results if r["budget"] == first]
            plot_accuracy(shown, out / "accuracy.png", title)
            print(f"\n{text}\n{EXPLANATION}\nThe picture is {out / 'accuracy.png'}.")


if __name__ == "__main__":
    main()
