"""Many runs: one after the other or side by side, those that are there already left alone."""

import concurrent.futures
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.config import TrainConfig
from experiments.harness.records import read_lines
from experiments.train import run

# Workers read these: only the bar over all runs is shown, and no worker takes a whole GPU's memory.
FOR_WORKERS = {"TQDM_DISABLE": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


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


def command_line(file: str, argv: Sequence[str] | None = None) -> str:
    """Return the command that a script was started with, or that ``argv`` stands for.

    ``file`` is the script's ``__file__``.

    >>> command_line(__file__, ["--out", "runs/a"])
    'python -m experiments.sweep --out runs/a'
    """
    arguments = sys.argv[1:] if argv is None else argv
    inside = Path(file).resolve().relative_to(Path(__file__).resolve().parent).with_suffix("")
    return shlex.join(["python", "-m", ".".join(["experiments", *inside.parts]), *arguments])


def made_by(file: str, argv: Sequence[str] | None, results: list[dict[str, Any]], jobs: int) -> str:
    """Return the line that says how results were made: command, commits and machine."""
    commits = ", ".join(sorted({str(result["commit"]) for result in results}))
    return (
        f"`{command_line(file, argv)}` at commit {commits}, on {results[0]['device']}, "
        f"{os.cpu_count()} cores, {jobs} run(s) at a time"
    )
