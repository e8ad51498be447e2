"""The pictures of a report."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from experiments.harness.report_tables import SPLIT
from experiments.harness.runs import Run, by_method, work_at
from experiments.harness.stats import with_interval

COLOURS = {
    "full": "0.35", "full_cut_off": "0.65", "random": "C0", "stratified": "C2", "crest": "C3",
    "fixed": "C9", "craig": "C1", "gradmatch": "C4", "gradmatch_batch": "C6", "glister": "C5",
    "el2n": "C8", "forgetting": "C7", "top_loss": "k", "dynamic_pruning": "darkgreen",
    "dynamic_pruning_random": "navy",
}  # fmt: skip


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


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
    labels = ("steps", "cost in training steps", "seconds (no evaluation, no compilation)")
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xscale="log", xlabel=label)
        plain_ticks(panel.xaxis)
        panel.grid(alpha=0.3)
    lowest = min(100 * point["accuracy"] for run in runs for point in run["curve"])
    low = np.quantile(finals, 0.25) - 12  # a method far below the others must not squeeze them
    panels[0].set(ylabel="accuracy, %", ylim=(max(low, lowest - 1.5), max(finals) + 1.5))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def split_figure(runs: list[Run]) -> Figure:
    """Seconds of each phase, medians."""
    groups = {name: own for name, own in by_method(runs).items() if name != "full"}
    figure = Figure(figsize=(9, 0.4 * len(groups) + 1.6), layout="constrained")
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
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def region_figure(run: Run, tau: float) -> Figure:
    """The quadratic model's error, the interval, the coresets and the share excluded of one run."""
    checks = run["checks"]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    borders = [row["step"] for row in checks if row["began_region"]]
    measured = [row for row in checks if row["rho"] is not None]
    panels[0].plot([r["step"] for r in measured], [r["rho"] for r in measured], "o", ms=3, color="C3")
    panels[0].axhline(tau, color="0.4", ls="--", lw=1)
    panels[0].set(yscale="log", ylabel="rho (line: tau)")
    steps = [row["step"] for row in checks]
    for panel, field, label in (
        (panels[1], "interval", "interval T1"),
        (panels[2], "coresets", "coresets selected"),
        (panels[3], "excluded", "examples excluded"),
    ):
        panel.step(steps, [row[field] for row in checks], where="post", color="C0")
        panel.set_ylabel(label)
    for panel in panels:
        for border in borders:
            panel.axvline(border, color="0.85", lw=0.8, zorder=0)
        panel.grid(alpha=0.2, axis="y")
    panels[3].set_xlabel("step (grey lines: a region begins)")
    return figure


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Read scores of examples, [n] each, that ``experiments.studies.difficulty`` wrote; made finite."""
    return {name: finite_scores(values) for name, values in np.load(path).items()}


def finite_scores(values: np.ndarray) -> np.ndarray:
    """Return scores [n] with an infinite one, of what was never learned, one above the largest.

    >>> finite_scores(np.array([0.0, 1.0, np.inf])).tolist()
    [0.0, 1.0, 2.0]
    """
    known = np.isfinite(values)
    return np.where(known, values, values[known].max() + 1)


def mean_of_picks(counts: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the mean score of the picks in each part of a run, [parts].

    >>> mean_of_picks(np.array([[1, 1, 0], [0, 1, 1]]), np.array([0.0, 1.0, 2.0])).tolist()
    [0.5, 1.5]
    """
    return counts @ scores / counts.sum(1)


def difficulty_figure(
    groups: dict[str, list[np.ndarray]], scores: dict[str, np.ndarray]
) -> tuple[Figure, list[list[str]]]:
    """Mean difficulty of the picks over training, and its rank correlation with time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(scores))
    rows = [["method", *(f"{name}: rank correlation with time" for name in scores)]]
    cells: dict[str, list[str]] = {name: [name] for name in groups}
    for panel, (label, values) in zip(np.atleast_1d(panels), scores.items(), strict=True):
        panel.axhline(values.mean(), color="0.5", ls="--", lw=1, label="all examples")
        for name, counts in groups.items():
            means = np.array([mean_of_picks(c, values) for c in counts])
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
