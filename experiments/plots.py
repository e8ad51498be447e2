"""Pictures of results."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

COLOURS = {
    "full": "0.35", "truncated": "0.65", "random": "C0", "stratified": "C2", "crest": "C3",
    "fixed": "C9", "craig": "C1", "gradmatch": "C4", "gradmatch_batch": "C6", "glister": "C5",
    "el2n": "C8", "forgetting": "C7", "hardest": "k", "unlearned": "darkgreen",
    "random_unlearned": "navy",
}  # fmt: skip


def plot_accuracy(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw held-out accuracy against steps and against seconds, mean and range over seeds."""
    if len({r["seed"] for r in results}) > 1:
        title += " (band: range over seeds)"
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for method in dict.fromkeys(r["method"] for r in results):
        curves = [r["curve"] for r in results if r["method"] == method]
        accuracy = 100 * np.array([[point["accuracy"] for point in curve] for curve in curves])
        for panel, axis in zip(panels, ("step", "seconds"), strict=True):
            place = np.median([[point[axis] for point in curve] for curve in curves], axis=0)
            panel.plot(
                place,
                accuracy.mean(0),
                "o-",
                ms=3,
                color=COLOURS.get(method),
                label=f"{method}, {accuracy[:, -1].mean():.1f} %",
            )
            if len(curves) > 1:
                panel.fill_between(
                    place, accuracy.min(0), accuracy.max(0), color=COLOURS.get(method), alpha=0.2, lw=0
                )
    finals = [100 * r["curve"][-1]["accuracy"] for r in results]
    lowest = min(100 * point["accuracy"] for r in results for point in r["curve"])
    low = np.quantile(finals, 0.25) - 15  # a method far below the others must not squeeze them
    panels[0].set_ylim(max(low, lowest - 1.5), max(finals) + 1.5)
    for panel, label in zip(
        panels, ("training steps", "seconds (no evaluation, no compilation)"), strict=True
    ):
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        title="method, at the end",
        loc="outside right upper",
        fontsize=8,
    )
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
