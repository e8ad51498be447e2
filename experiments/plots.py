"""Pictures of results."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"full": "0.35", "random": "C0", "stratified": "C2", "crest": "C3"}


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
    panels[0].set_ylim(min(finals) - 15, max(finals) + 1.5)
    for panel, label in zip(
        panels, ("training steps", "seconds (no evaluation, no compilation)"), strict=True
    ):
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(title="method, at the end")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
