"""Tables of ``experiments.studies.gradient_quality``."""

from typing import Any

import numpy as np

from experiments.harness.records import table
from experiments.harness.stats import equivalent_batch

RESAMPLES = 2000


def size_with_error(error: float, sizes: list[int], reached: list[float]) -> float:
    """Return the size of a stratified batch with an error, linear in logarithms.

    >>> round(size_with_error(0.25, [1, 2, 4], [1.0, 0.5, 0.25]), 6)
    4.0
    """
    return equivalent_batch(-np.log2(error), sizes, list(-np.log2(reached)), within=8.0)


def summarise(results: list[dict[str, Any]]) -> str:
    """Return a table for each point."""
    rng, parts = np.random.default_rng(0), []
    for step in sorted({row["step"] for row in results}):
        rows = [row for row in results if row["step"] == step]
        squared = {row["kind"]["name"]: np.asarray(row["squared"]) for row in rows}
        count = len(next(iter(squared.values())))
        sizes = [1, 2, 4]
        draws = rng.integers(0, count, (RESAMPLES, count))
        again = {name: values[draws].mean(axis=1) for name, values in squared.items()}
        bases = [again[f"stratified, {size}m"] for size in sizes]
        base = squared["stratified, 1m"].mean()
        reached = [float(squared[f"stratified, {size}m"].mean() / base) for size in sizes]
        lines = []
        for row in rows:
            name = row["kind"]["name"]
            ratio, ends = (
                squared[name].mean() / base,
                np.quantile(again[name] / bases[0], [0.025, 0.975]),
            )
            size = size_with_error(float(ratio), sizes, reached)
            others = [
                size_with_error(float(x / b[0]), sizes, [float(y / b[0]) for y in b])
                for x, b in zip(again[name], zip(*bases, strict=True), strict=True)
            ]
            low, high = np.quantile(others, [0.025, 0.975])
            lines.append(
                [
                    name,
                    f"{ratio:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]",
                    f"{row['variance'] / base:.2f}",
                    f"{row['bias'] / row['full_norm']:.2f}",
                    f"{size:.2f} [{low:.2f}, {high:.2f}]",
                ]
            )
        header = ["mini-batches", "error", "variance", "bias / full", "equivalent batch, m"]
        parts.append(
            f"### Step {step}, norm of the full gradient {rows[0]['full_norm']:.3f}\n\n"
            f"{table(header, lines)}\n\n{_what_lengths_leave(rows[0])}"
        )
    return "\n\n".join(parts)


def _what_lengths_leave(row: dict[str, Any]) -> str:
    left = row["left_by_lengths"]
    return (
        "Draws in proportion to gradients would leave, of the variance of uniform draws, "
        f"{left['last_layer']:.2f} by lengths in the last layer and {left['all']:.2f} by those in all "
        "parameters."
    )
