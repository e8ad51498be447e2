"""Make one self-contained HTML page out of a comparison.

    python -m experiments.report --runs runs/three --out runs/three/report.html

Reads what ``experiments.compare`` wrote. ``--difficulty`` (of ``experiments.difficulty``) adds how
difficult the picks are over training, ``--quality`` (of ``experiments.gradient_quality``) the bias and
variance of the gradient. Pictures are inlined in the page and also written beside it.
"""

import base64
import dataclasses
import html
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy import stats

from crest_jax.report import read_lines
from experiments.compare import SPLIT, paired, with_interval, work_in_steps
from experiments.config import TEXT_DATASETS, UserError
from experiments.plots import COLOURS
from experiments.program import load_data
from experiments.run_folder import held_file
from experiments.train import one_sentence

Run = dict[str, Any]
SHARES = (0.90, 0.95, 0.98)  # of full training's accuracy
BEGINS = ("start", "error", "exhausted")  # reasons of events with which a region begins


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What to read and where to write."""

    runs: Path
    """Folder that experiments.compare wrote."""
    out: Path = Path("report.html")
    """The page."""
    difficulty: Path | None = None
    """Scores that experiments.difficulty wrote."""
    quality: Path | None = None
    """gradient_quality.jsonl of experiments.gradient_quality."""
    without_picks: bool = False
    """Leave out what only the run folders hold: regions and picks."""


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


# Tables: rows of cells.


def method_table(runs: list[Run]) -> list[list[str]]:
    """Accuracy, error relative to full training, differences, seconds and work of every method."""
    groups = by_method(runs)
    full = [accuracy_of(run) for run in groups.get("full", [])]
    full_seconds = [run["training_seconds"] for run in groups.get("full", [])]
    rows = [
        [
            "method", "seeds", "steps", "accuracy, %", "relative error to full, %", "minus random",
            "minus stratified", "seconds", "faster than full", "work, steps",
        ]
    ]  # fmt: skip
    for name, own in groups.items():
        alike = [r for r in runs if r["budget"] == own[0]["budget"]]
        errors = [float(100 * abs(accuracy_of(run) / np.mean(full) - 1)) for run in own] if full else []
        seconds = float(np.median([run["training_seconds"] for run in own]))
        method = own[0]["method"]
        differences = [
            with_interval(paired(alike, method, other, accuracy_name(own[0])), scale=100, sign="+")
            if method not in ("full", other)
            else ""
            for other in ("random", "stratified")
        ]
        rows.append(
            [
                name, str(len(own)), str(own[0]["steps"]),
                with_interval([accuracy_of(run) for run in own], scale=100),
                with_interval(errors) if name != "full" else "", *differences, f"{seconds:.1f}",
                f"{np.median(full_seconds) / seconds:.1f}" if full_seconds else "",
                f"{np.median([work_in_steps(run) for run in own]):.0f}",
            ]
        )  # fmt: skip
    return rows


def time_table(runs: list[Run]) -> list[list[str]]:
    """Seconds to reach shares of full training's accuracy, over those that full training takes."""
    groups = by_method(runs)
    if "full" not in groups:
        return []
    level = float(np.mean([accuracy_of(run) for run in groups["full"]]))
    rows = [["method", *(f"to {100 * share:.0f} % of full's accuracy" for share in SHARES)]]
    base = [
        np.nanmedian([seconds_to(run, share * level) for run in groups["full"]]) for share in SHARES
    ]
    for name, own in groups.items():
        cells = [name]
        for share, full in zip(SHARES, base, strict=True):
            found = [seconds_to(run, share * level) for run in own]
            reached = int(np.isfinite(found).sum())
            cells.append(
                f"{np.nanmedian(found) / full:.2f} of full's time ({reached} of {len(own)} runs)"
                if reached
                else "never"
            )
        rows.append(cells)
    return rows


# Pictures.


def accuracy_figure(runs: list[Run]) -> Figure:
    """Accuracy against steps, against all work counted and against seconds."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    finals = []
    for name, own in by_method(runs).items():
        accuracy = 100 * np.array([[point["accuracy"] for point in run["curve"]] for run in own])
        finals.append(accuracy[:, -1].mean())
        places = (
            [[point["step"] for point in run["curve"]] for run in own],
            [[work_at(run, point["step"]) for point in run["curve"]] for run in own],
            [[point["seconds"] for point in run["curve"]] for run in own],
        )
        colour = COLOURS.get(own[0]["method"]) if own[0]["method"] == name else None
        for panel, place in zip(panels, places, strict=True):
            x = np.median(place, axis=0)
            panel.plot(
                x, accuracy.mean(0), "o-", ms=3, color=colour, label=f"{name}, {finals[-1]:.1f} %"
            )
            panel.fill_between(x, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.12, lw=0)
    labels = ("steps", "all work, in steps", "seconds (no evaluation, no compilation)")
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xscale="log", xlabel=label)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy, %", ylim=(np.quantile(finals, 0.25) - 12, max(finals) + 1.5))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def split_figure(runs: list[Run]) -> Figure:
    """Seconds of each phase, medians."""
    groups = {name: own for name, own in by_method(runs).items() if name != "full"}
    figure = Figure(figsize=(9, 0.4 * len(groups) + 1.4), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(groups))
    for phase in SPLIT:
        seconds = np.array(
            [np.median([run["seconds"][phase] for run in own]) for own in groups.values()]
        )
        axis.barh(list(groups), seconds, left=left, label=phase)
        left += seconds
    axis.invert_yaxis()
    axis.set(
        xlabel="seconds, median over seeds",
        xscale="symlog" if left.max() > 8 * left.min() else "linear",
    )
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8)
    return figure


def region_figure(run: Run, tau: float) -> Figure:
    """The quadratic model's error, the interval, the coresets and the share excluded of one run."""
    checks = run["checks"]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    borders = [row["step"] for row in checks if row["reason"] in BEGINS]
    measured = [row for row in checks if row["rho"] is not None]
    panels[0].plot([r["step"] for r in measured], [r["rho"] for r in measured], "o", ms=3, color="C3")
    panels[0].axhline(tau, color="0.4", ls="--", lw=1)
    panels[0].set(yscale="log", ylabel="rho (line: tau)")
    steps = [row["step"] for row in checks]
    for panel, field, label in (
        (panels[1], "interval", "interval T1"),
        (panels[2], "coresets", "coresets selected"),
        (panels[3], "excluded", "examples out of play"),
    ):
        panel.step(steps, [row[field] for row in checks], where="post", color="C0")
        panel.set_ylabel(label)
    for panel in panels:
        for border in borders:
            panel.axvline(border, color="0.85", lw=0.8, zorder=0)
        panel.grid(alpha=0.2, axis="y")
    panels[3].set_xlabel("step (grey lines: a region begins)")
    return figure


def region_rows(runs: list[Run]) -> list[list[str]]:
    """How regions grow over training: lengths, their rank correlation with time, and the share out."""
    head = [
        "method", "seeds", "regions", "median length, first half", "second half", "longest",
        "length: rank correlation with time", "examples out of play at the end",
    ]  # fmt: skip
    rows = []
    for name, own in by_method(runs).items():
        if own[0]["method"] != "crest":
            continue
        early, late, longest, ranks, counts, out = [], [], [], [], [], []
        for run in own:
            begun = [row["step"] for row in run["checks"] if row["reason"] in BEGINS]
            ends = [row["step"] for row in run["checks"] if row["reason"] == "random"]
            lengths = np.diff([*begun, *(ends or [run["steps"]])])
            middle = len(lengths) // 2
            early.append(float(np.median(lengths[:middle] if middle else lengths)))
            late.append(float(np.median(lengths[middle:])))
            longest.append(float(lengths.max()))
            counts.append(float(len(lengths)))
            out.append(float(run["excluded"]))
            if np.ptp(lengths):
                ranks.append(float(stats.spearmanr(np.arange(len(lengths)), lengths).statistic))
        rows.append(
            [name, str(len(own)), f"{np.median(counts):.0f}", f"{np.median(early):.0f}",
             f"{np.median(late):.0f}", f"{np.median(longest):.0f}", with_interval(ranks),
             f"{np.median(out):.0f}"]
        )  # fmt: skip
    return [head, *rows]


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


def difficulty_figure(
    groups: dict[str, list[np.ndarray]], scores: dict[str, np.ndarray]
) -> tuple[Figure, list[list[str]]]:
    """Mean difficulty of the picks over training, and its rank correlation with time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(scores))
    rows = [["method", *(f"{name}: rank correlation with time" for name in scores)]]
    cells: dict[str, list[str]] = {name: [name] for name in groups}
    for panel, (label, values) in zip(np.atleast_1d(panels), scores.items(), strict=True):
        finite = np.where(np.isfinite(values), values, values[np.isfinite(values)].max() + 1)
        panel.axhline(finite.mean(), color="0.5", ls="--", lw=1, label="all examples")
        for name, counts in groups.items():
            means = np.array([(c * finite).sum(1) / c.sum(1) for c in counts])
            place = (np.arange(means.shape[1]) + 0.5) / means.shape[1]
            panel.plot(place, means.mean(0), "o-", ms=3, color=COLOURS.get(name), label=name)
            if len(means) > 1:
                panel.fill_between(
                    place, means.min(0), means.max(0), color=COLOURS.get(name), alpha=0.15
                )
            ranks = [float(stats.spearmanr(np.arange(len(m)), m).statistic) for m in means if np.ptp(m)]
            cells[name].append(with_interval(ranks))
        panel.set(xlabel="share of the run", ylabel=f"{label}, mean of the picks")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure, rows + list(cells.values())


def balance_figure(
    groups: dict[str, list[np.ndarray]], labels: np.ndarray, names: tuple[str, ...]
) -> Figure:
    """Share of each class among the picks."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / (len(groups) + 1)
    data = np.bincount(labels, minlength=len(names)) / len(labels)
    shares = {"data": data}
    for name, counts in groups.items():
        total = np.sum([c.sum(0) for c in counts], axis=0)
        shares[name] = np.bincount(labels, weights=total, minlength=len(names)) / total.sum()
    for k, (name, share) in enumerate(shares.items()):
        colour = COLOURS.get(name, "0.7")
        axis.bar(np.arange(len(names)) + k * width, 100 * share, width, label=name, color=colour)
    axis.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=20)
    axis.set_ylabel("share of the picks, %")
    axis.legend(fontsize=8)
    return figure


def contact_figure(
    counts: np.ndarray, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> Figure:
    """The most and the least picked images of each class."""
    total = counts.sum(0)
    columns, classes = 8, len(names)
    figure = Figure(figsize=(13, 0.72 * classes + 0.8), layout="constrained")
    grid = figure.subplots(classes, 2 * columns + 1, squeeze=False)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        ranked = rows[np.argsort(-total[rows], kind="stable")]
        shown = [*ranked[:columns], None, *ranked[::-1][:columns]]
        for axis, row in itertools.zip_longest(grid[label], shown):
            axis.axis("off")
            if row is not None:
                axis.imshow(images[row].squeeze(), cmap="gray_r")
                axis.set_title(str(total[row]), fontsize=6, pad=1)
        grid[label][0].axis("on")
        grid[label][0].set(xticks=[], yticks=[])
        grid[label][0].set_ylabel(names[label], fontsize=6, rotation=0, ha="right")
    figure.suptitle("most picked (left) and least picked (right), with the number of times", fontsize=9)
    return figure


def quality_made(path: Path) -> str:
    """Return the command that made a measurement of gradients, which the table beside it holds."""
    table_path = path.with_suffix(".md")
    first = table_path.read_text(encoding="utf-8").split("\n", 1)[0] if table_path.is_file() else ""
    return first if first.startswith("`") else "By experiments.gradient_quality."


def quality_figure(lines: list[dict[str, Any]]) -> Figure:
    """Variance and bias of the gradients of mini-batches over training."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    random = {line["step"]: line["variance"] for line in lines if line["kind"] == "random"}
    for kind in kinds:
        own = [line for line in lines if line["kind"] == kind]
        steps = [line["step"] for line in own]
        left.plot(
            steps, [line["variance"] / random[line["step"]] for line in own], "o-", ms=3, label=kind
        )
        right.plot(steps, [line["bias_bound"] for line in own], "o-", ms=3, label=kind)
    left.set(ylabel="variance over that of random batches", xlabel="step", ylim=(0, None))
    right.set(ylabel="bias over the full gradient's norm, 95 % bound", xlabel="step", ylim=(0, None))
    right.axhline(1.0, color="0.5", ls="--", lw=1)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


# The page.

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto }
td, th { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right }
td { white-space: nowrap }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
.made { color: #666; font-size: 0.85rem } code { font-size: 0.8rem }
"""


class Page:
    """Collects the parts of the page."""

    def __init__(self, title: str, made: str, folder: Path, stem: str) -> None:
        """Begin a page whose pictures are also written into ``folder``."""
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="made">{html.escape(made)}</p>']
        self._made, self._folder, self._stem = made, folder, stem

    def section(self, title: str, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")

    def table(self, rows: list[list[str]]) -> None:
        """Add a table; the first row is its head."""
        head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        head = head.replace("<td>", "<th>").replace("</td>", "</th>")
        self._parts.append(
            f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
        )

    def picture(self, name: str, figure: Figure, caption: str, made: str | None = None) -> None:
        """Add a picture with what it shows and how it was made, and write it beside the page."""
        made = self._made if made is None else made
        path = self._folder / f"{self._stem}-{name}.png"
        figure.savefig(path, dpi=110)
        data = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(caption, quote=True)
        self._parts.append(
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
            f'<figcaption class="made">{html.escape(caption)} {html.escape(made)}</figcaption>'
            "</figure>"
        )

    def write(self, path: Path) -> None:
        """Write the page whole or not at all."""
        body = "\n".join(self._parts)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>crest_jax: comparison</title><style>{STYLE}</style></head>"
            f"<body>{body}</body></html>\n"
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def compared(runs: list[Run]) -> Iterator[str]:
    """The methods whose picks are worth looking at beside CREST's."""
    there = {run["method"] for run in runs}
    yield from (name for name in ("crest", "stratified", "hardest", "craig") if name in there)


def build(config: ReportConfig) -> None:
    """Make the page."""
    runs, made = read_runs(config.runs)
    scores = None
    if config.difficulty is not None:
        scores = dict(np.load(config.difficulty))
    page = Page("Coresets compared", made, config.out.parent, config.out.stem)
    page.section(
        "Accuracy, time and work",
        "Means over seeds with 95 % intervals (Student's t); differences are paired by seed; seconds "
        "are medians without evaluation and compilation. Work counts every example passed forward and "
        "backward, in training steps.",
    )
    page.table(method_table(runs))
    page.picture("accuracy", accuracy_figure(runs), "Mean and range over seeds.")
    times = time_table(runs)
    if times:
        page.section(
            "Time to accuracy",
            "Median over the runs that get there, over the time that full training takes.",
        )
        page.table(times)
    page.section("What the time goes to", "Full training is left out; its time is all steps.")
    page.picture("split", split_figure(runs), "Seconds by phase.")
    crest = [run for run in runs if run["method"] == "crest" and not config.without_picks]
    if crest:
        path = file_of(config.runs, crest[0], "config.json")
        settings = json.loads(path.read_text(encoding="utf-8"))
        page.section(
            "Quadratic regions",
            "One run of CREST: where its model of the loss held and where it was given up.",
        )
        caption = f"Seed {crest[0]['seed']}."
        page.picture("regions", region_figure(crest[0], settings["crest"]["tau"]), caption)
        page.table(region_rows(runs))
        shown = by_method([r for r in runs if r["budget"] == crest[0]["budget"]])
        groups = {name: [picks_of(config.runs, r) for r in shown[name]] for name in compared(runs)}
        page.section("What is picked", "Counted in each twentieth of the run.")
        if scores is not None:
            figure, rows = difficulty_figure(groups, scores)
            caption = (
                "Difficulty by a separate full run (experiments.difficulty); band: range over seeds."
            )
            page.picture("difficulty", figure, caption)
            page.table(rows)
        if settings["dataset"] not in TEXT_DATASETS:
            _picture_picks(page, settings, groups)
    if config.quality is not None:
        page.section(
            "Bias and variance of the gradient",
            "Convergence needs a bias below the full gradient's norm (a bound of 1); the bound "
            "includes sampling noise.",
        )
        page.picture(
            "quality",
            quality_figure(read_lines(config.quality)),
            "Of mini-batches of each kind.",
            made=quality_made(config.quality),
        )
    page.write(config.out)


def _picture_picks(page: Page, settings: dict[str, Any], groups: dict[str, list[np.ndarray]]) -> None:
    """Show classes and images of the picks."""
    data = load_data(settings["dataset"], _path(settings["data_dir"]))
    figure = balance_figure(groups, data.train_labels, data.class_names)
    page.picture("classes", figure, "Classes of the picks.")
    figure = contact_figure(
        np.sum(groups["crest"], axis=0), data.train_inputs, data.train_labels, data.class_names
    )
    page.picture("contact", figure, "CREST's picks, all seeds.")


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def main() -> None:
    """Read the command line and make the page."""
    with one_sentence("interrupted; start again."):
        config = tyro.cli(ReportConfig, description=__doc__)
        for name in ("difficulty", "quality"):
            path = getattr(config, name)
            if path is not None and not path.is_file():
                raise UserError(f"--{name} {path} is not there; make it first, or leave --{name} out.")
        with held_file(config.out):
            build(config)
    print(f"the page is {config.out}")


if __name__ == "__main__":
    main()
