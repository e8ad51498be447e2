"""How difficult the picks of several runs are over training.

    python -m experiments.studies.picks --scores runs/difficulty.npz --out runs/picks \\
        --runs runs/equivalent/crest-seed100 runs/equivalent/stratified-1-seed100

The runs are folders of ``experiments.studies.equivalent`` or another study of ways of choosing, named
by way and seed; the scores are of ``experiments.studies.difficulty`` on the same examples. The folder
gets ``picks.jsonl`` (of each run, the mean score of the picks in each twentieth), ``summary.md`` and
``difficulty.png``.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, table
from experiments.harness.report_figures import difficulty_figure, mean_of_picks, read_scores
from experiments.harness.run_folder import COMMIT, held_folder
from experiments.harness.stats import with_interval
from experiments.studies.variants import VARIANTS
from experiments.sweep import command_line


@dataclasses.dataclass(frozen=True)
class PicksConfig:
    """What to compare."""

    runs: tuple[Path, ...]
    """Run folders, named as a study names them: WAY-seedN."""
    scores: Path = Path("runs/difficulty.npz")
    """Scores of the same examples, by experiments.studies.difficulty."""
    out: Path = Path("runs/picks")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.scores.is_file():
            raise UserError(f"--scores {self.scores} is not there; make it first.")
        ways = [way_and_seed(folder) for folder in self.runs]
        for folder in self.runs:
            if not (folder / "picks.npz").is_file():
                raise UserError(
                    f"--runs holds {folder}, which has no picks.npz, but must hold folders of finished "
                    "runs; leave it out."
                )
        if not ways or len(set(ways)) < len(ways):
            raise UserError(
                f"--runs holds {len(ways)} folders of {len(set(ways))} runs but must hold one at "
                "least, and each once; change it."
            )


def way_and_seed(folder: Path) -> tuple[str, int]:
    """Return what a study's run chose by, and its seed.

    >>> way_and_seed(Path("runs/stratified-2-seed100")), way_and_seed(Path("crest-seed3"))
    (('stratified, 2m', 100), ('CREST (recommended)', 3))
    """
    name, _, seed = folder.name.rpartition("-seed")
    way, _, size = name.partition("-")
    if way not in VARIANTS or not seed.isdigit() or (size and not size.isdigit()):
        raise UserError(
            f"--runs holds {folder} but must hold run folders named WAY-seedN, where WAY is one of "
            f"{', '.join(VARIANTS)}; name such folders."
        )
    return VARIANTS[way].text + (f", {size}m" if size else ""), int(seed)


def counts_of(folder: Path, examples: int) -> np.ndarray:
    """Return how often each example was picked in each twentieth of a run, [20, n]."""
    counts = np.load(folder / "picks.npz")["counts"]
    if counts.shape[1] != examples:
        raise UserError(
            f"--runs holds {folder} with {counts.shape[1]} examples but --scores has {examples}; score "
            "the data of the runs."
        )
    return counts


def measure(
    config: PicksConfig, scores: dict[str, np.ndarray]
) -> tuple[dict[str, list[np.ndarray]], list[dict[str, Any]]]:
    """Return the picks of each way of choosing, and the rows of ``picks.jsonl``."""
    groups: dict[str, list[np.ndarray]] = {}
    rows = []
    for folder in config.runs:
        way, seed = way_and_seed(folder)
        counts = counts_of(folder, len(next(iter(scores.values()))))
        groups.setdefault(way, []).append(counts)
        for name, values in scores.items():
            row = {"way": way, "seed": seed, "score": name, "all": round(float(values.mean()), 6)}
            rows.append(row | {"means": mean_of_picks(counts, values).round(6).tolist()})
    return groups, rows


def summarise(rows: list[dict[str, Any]]) -> str:
    """Return the table: mean scores of the picks over those of all examples.

    >>> row = {"way": "random", "score": "el2n", "seed": 1, "all": 0.5, "means": [0.5, 0.5, 1.0, 1.0]}
    >>> print(summarise([row]))
    | picks of | seeds | el2n, first half | el2n, second half |
    |----------|-------|------------------|-------------------|
    | random   | 1     | 1.00             | 2.00              |
    """
    names = list(dict.fromkeys(row["score"] for row in rows))
    cells = []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        line = [way, str(len({row["seed"] for row in own}))]
        for name in names:
            halves = [
                np.array_split(np.array(row["means"]) / row["all"], 2)
                for row in own
                if row["score"] == name
            ]
            line += [with_interval([half[place].mean() for half in halves]) for place in (0, 1)]
        cells.append(line)
    heads = [f"{name}, {half} half" for name in names for half in ("first", "second")]
    return table(["picks of", "seeds", *heads], cells)


EXPLANATION = """
Mean scores of the picks over the mean of all examples, in the two halves of the run; above 1 the picks
are harder than the data. ± is the 95 % interval over seeds (Student's t).
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read picks and scores, then write and print the table."""
    with one_sentence("interrupted; start again."):
        config = tyro.cli(PicksConfig, args=argv, description=__doc__)
        scores = read_scores(config.scores)
        groups, rows = measure(config, scores)
        with held_folder(config.out):
            path = config.out / "picks.jsonl"
            path.unlink(missing_ok=True)
            for row in rows:
                append_line(path, row)
            text = summarise(rows)
            made = f"`{command_line(__file__, argv)}` at commit {COMMIT}"
            (config.out / "summary.md").write_text(f"{made}\n\n{text}\n{EXPLANATION}", encoding="utf-8")
            difficulty_figure(groups, scores)[0].savefig(config.out / "difficulty.png", dpi=130)
            print(text)


if __name__ == "__main__":
    main()
