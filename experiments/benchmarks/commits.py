"""Time two checkouts of crest_jax against each other, alternating, on the same data.

    git worktree add ../before COMMIT
    python -m experiments.benchmarks.commits ../before . --out runs/commits

Both have a process of their own that waits while the other works. Every case is called once before it
is timed, so that compilation is apart. Writes ``lines.jsonl``, one line a pair, and ``page.md``:
medians, and the ratio of each pair of calls with its quartiles.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import commit_of, held_new_folder
from experiments.sweep import command_line

TRAININGS = ("stratified", "crest", "dynamic_pruning", "top_loss", "craig", "gradmatch")


@dataclasses.dataclass(frozen=True)
class CommitsConfig:
    """What to compare."""

    before: Annotated[Path, tyro.conf.Positional]
    """Checkout of the one commit."""
    after: Annotated[Path, tyro.conf.Positional]
    """Checkout of the other."""
    out: Path = Path("runs/commits")
    """Folder of the results, which must be new."""
    rounds: int = 9
    """Pairs of calls of each selection."""
    trainings: int = 3
    """Pairs of trainings of each method, 158 steps on the shipped data; 0: none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("before", "after"):
            where = getattr(self, name)
            if not (where / "crest_jax" / "__init__.py").is_file():
                raise UserError(f"{name} is {where} but must be a checkout of crest_jax; name one.")
        if self.rounds < 1 or self.trainings < 0:
            raise UserError(
                f"--rounds is {self.rounds} and --trainings {self.trainings} but they must be at least "
                "1 and 0; raise them."
            )


def selections() -> dict[str, Callable[[], Any]]:
    """Return the calls that are timed, by public functions that both checkouts have."""
    from crest_jax import select_coreset

    rng = np.random.default_rng(0)
    found: dict[str, Callable[[], Any]] = {}

    def add(name: str, rows: int, size: int, width: int = 10, classes: int = 1, **more: Any) -> None:
        x = rng.normal(size=(rows, width)).astype(np.float32)
        labels = rng.integers(0, classes, rows) if classes > 1 else None
        found[name] = lambda: np.asarray(select_coreset(x, size, labels=labels, **more).weights)

    add("medoids of 256 in 10 classes", 256, 128, classes=10)
    add("dense, 2,000 rows in 10 classes", 2_000, 200, classes=10, method="dense")
    add("lazy, 2,000 rows", 2_000, 200, method="lazy")
    add("lazy, 5,000 rows", 5_000, 500, method="lazy")
    add("lazy, 10,000 rows, 64 columns", 10_000, 1_000, 64, method="lazy")
    add("lazy, 20,000 rows in 10 classes", 20_000, 2_000, classes=10, method="lazy")
    add("stochastic, 20,000 rows", 20_000, 500, method="stochastic")
    add("partitioned, 50,000 rows", 50_000, 500, method="partitioned")
    return found


def work() -> None:
    """Answer the names of selections on the standard input with seconds, until it ends."""
    known = selections()
    for line in sys.stdin:
        call = known[line.strip()]
        began = time.perf_counter()
        call()
        print(time.perf_counter() - began, flush=True)


class _Worker:
    """A process in a checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout.resolve()
        self.environment = {**os.environ, "PYTHONPATH": str(self.checkout)}
        code = f"import runpy; runpy.run_path({__file__!r})['work']()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=self.checkout, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self, name: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise UserError(f"{self.checkout} cannot run {name!r}; its error stands above.")
        return float(said)

    def training(self, method: str, seed: int, out: Path) -> float:
        options = ["--budget", "0.2", "--seed", str(seed), "--out", str(out.resolve())]
        options += ["--run.evaluations", "1", "--run.checkpoints", "1", "--method", method]
        subprocess.run(
            [sys.executable, "-m", "experiments.train", *options], cwd=self.checkout, check=True,
            env=self.environment, capture_output=True,
        )  # fmt: skip
        return float(json.loads((out / "metrics.json").read_text())["training_seconds"])


def compare(config: CommitsConfig) -> None:
    """Time all pairs; write the lines and the page."""
    names = list(selections())
    workers = {"before": _Worker(config.before), "after": _Worker(config.after)}
    bar = tqdm(total=len(names) * config.rounds + len(TRAININGS) * config.trainings, unit="pair")

    def pair(name: str, turn: int, calls: Mapping[str, Callable[[], float]]) -> None:
        order = ("before", "after") if turn % 2 == 0 else ("after", "before")
        found = {which: calls[which]() for which in order}
        append_line(config.out / "lines.jsonl", {"name": name, "turn": turn, **found})
        bar.update()

    for name in names:
        for worker in workers.values():
            worker.seconds(name)  # compiles
        calls = {which: partial(worker.seconds, name) for which, worker in workers.items()}
        for turn in range(config.rounds):
            pair(name, turn, calls)
    for turn in range(config.trainings):
        for method in TRAININGS:
            folder = config.out / "trainings" / f"{method}-{turn}"
            trained = {
                which: partial(worker.training, method, turn, folder / which)
                for which, worker in workers.items()
            }
            pair(f"training, {method}", turn, trained)
    bar.close()
    for worker in workers.values():
        worker.process.communicate()
    write_page(config)


def write_page(config: CommitsConfig) -> None:
    """Write ``page.md`` from the lines."""
    lines = [json.loads(line) for line in (config.out / "lines.jsonl").read_text().splitlines()]
    rows = []
    for name in dict.fromkeys(line["name"] for line in lines):
        times = np.array([(x["before"], x["after"]) for x in lines if x["name"] == name])
        ratios = np.percentile(times[:, 1] / times[:, 0], [50, 25, 75])
        unit, scale = ("ms", 1e3) if times.max() < 1 else ("s", 1)
        before, after = (f"{scale * x:.3g} {unit}" for x in np.median(times, axis=0))
        rows.append([name, before, after, *(f"{x:.2f}" for x in ratios), str(len(times))])
    head = ["", "before", "after", "ratio", "lower quartile", "upper quartile", "pairs"]
    commits = " and ".join(str(commit_of(x)) for x in (config.before, config.after))
    made = f"`{command_line(__file__, None)}`: commits {commits}, {os.cpu_count()} cores"
    text = f"{made}\n\n{table(head, rows)}\n"
    (config.out / "page.md").write_text(text)
    print(text)


def main() -> None:
    """Read the command line and compare."""
    with one_sentence("interrupted; the pairs so far are in lines.jsonl."):
        config = parse(CommitsConfig, default=tyro.MISSING, description=__doc__)
        with held_new_folder(config.out):
            compare(config)


if __name__ == "__main__":
    main()
