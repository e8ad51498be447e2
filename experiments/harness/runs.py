"""The runs of a comparison, read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.cli import UserError
from experiments.harness.records import read_lines
from experiments.harness.stats import work_in_steps

Run = dict[str, Any]


def read_runs(folder: Path) -> tuple[list[Run], str]:
    """Return the runs of a comparison and the line that says how they were made."""
    path = folder / "summary.jsonl"
    if not path.is_file():
        raise UserError(
            f"--runs {folder} holds no summary.jsonl but must be a folder that experiments.compare "
            "wrote; run it first."
        )
    try:
        runs = read_lines(path)
        accuracy_of(runs[0])
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} is damaged ({error}) but must be as experiments.compare wrote it; run that again."
        ) from error
    return runs, (folder / "summary.md").read_text(encoding="utf-8").splitlines()[0]


def accuracy_name(run: Run) -> str:
    """Return the name of the held-out accuracy at the end."""
    return "test_accuracy" if "test_accuracy" in run else "validation_accuracy"


def accuracy_of(run: Run) -> float:
    """Return the held-out accuracy at the end."""
    return float(run[accuracy_name(run)])


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs by method, and by budget where there are several."""
    budgets = {run["budget"] for run in runs if run["method"] != "full"}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        own = f" {100 * run['budget']:g} %" if len(budgets) > 1 and run["method"] != "full" else ""
        groups.setdefault(run["method"] + own, []).append(run)
    return groups


def work_at(run: Run, step: int) -> float:
    """Return all work of the first ``step`` steps, in steps: what events counted, else a fair share."""
    total = work_in_steps(run)
    beside = [row for row in run["checks"] if row["step"] < step and row.get("work")]
    if not beside:
        return total * step / run["steps"]
    work = beside[-1]["work"]
    batch = run["forward"]["step"] / run["steps"]
    forward = sum(value for name, value in work.items() if name.endswith("forward"))
    backward = sum(value for name, value in work.items() if name.endswith("backward"))
    return step + (forward + 2 * backward) / (3 * batch)


def seconds_to(run: Run, accuracy: float) -> float:
    """Return the seconds at which a run first has an accuracy, interpolated; NaN if never.

    >>> run = {"curve": [{"seconds": 1.0, "accuracy": 0.5}, {"seconds": 3.0, "accuracy": 0.7}]}
    >>> seconds_to(run, 0.6), seconds_to(run, 0.8)
    (2.0, nan)
    """
    before = {"seconds": 0.0, "accuracy": 0.0}
    for point in run["curve"]:
        if point["accuracy"] >= accuracy:
            share = (accuracy - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return round(before["seconds"] + share * (point["seconds"] - before["seconds"]), 9)
        before = point
    return float("nan")


def file_of(folder: Path, run: Run, name: str) -> Path:
    """Return a file of the folder of one run."""
    method, seed = run["method"], run["seed"]
    for own in (f"{method}-seed{seed}", f"{method}-{run['budget']:g}-seed{seed}"):
        path = folder / own / name
        if path.is_file():
            return path
    raise UserError(
        f"{folder} holds no run folder of {method}, seed {seed}, with {name}, but the page reads it; "
        "keep the run folders beside summary.jsonl, or pass --without-picks."
    )


def picks_of(folder: Path, run: Run) -> np.ndarray:
    """Return how often each example was picked in each part of a run, [parts, n]."""
    return np.load(file_of(folder, run, "picks.npz"))["counts"]


def compared(runs: list[Run]) -> Iterator[str]:
    """The methods whose picks are worth looking at beside CREST's."""
    there = {run["method"] for run in runs}
    yield from (name for name in ("crest", "stratified", "top_loss", "craig") if name in there)
