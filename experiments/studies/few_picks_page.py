"""Tables of ``few_picks``."""

import math
import os
from typing import Any

import jax
import numpy as np

from experiments.harness.records import table
from experiments.studies.few_picks_rules import CHOSEN, MEASURE, RULES


def ratios(errors: np.ndarray, to: str) -> dict[str, list[float]]:
    """Return each rule's mean of errors [draws, rules] over that of the rule ``to``.

    With it stands the standard error, that of draws, to first order, rules paired by draw.
    """
    means, base = errors.mean(0), list(RULES).index(to)
    middle = means / means[base]
    spread = errors - middle * errors[:, [base]]
    error = spread.std(0, ddof=1) / math.sqrt(len(errors)) / means[base]
    return {name: [digits(middle[i]), digits(error[i])] for i, name in enumerate(RULES)}


def digits(value: float) -> float:
    """Keep four digits.

    >>> digits(1.23456)
    1.235
    """
    return float(f"{value:.4g}")


def summarise_draws(errors: np.ndarray, off: np.ndarray, norms: np.ndarray) -> dict[str, Any]:
    """Return ratios with standard errors, and biases, of errors [draws, rules, 4].

    ``off`` [rules, 2] are the squared distances of the mean gradients from the full one, of squared
    norms [2].
    """
    means = errors.mean(0)
    noise = (means[:, :2] - off) / (len(errors) - 1)
    base = list(RULES).index(MEASURE)
    return {
        "over_stratified": {x: ratios(errors[:, :, j], MEASURE) for j, x in enumerate(TARGETS)},
        "over_chosen": {x: ratios(errors[:, :, j], CHOSEN) for j, x in enumerate(TARGETS[:1])},
        "stratified_over_full_norm": [digits(x) for x in means[base, :2] / norms],
        "bias": {
            kind: {
                name: [digits((off[i, j] - noise[i, j]) / norms[j]), digits(noise[i, j] / norms[j])]
                for i, name in enumerate(RULES)
            }
            for j, kind in enumerate(("all", "logits"))
        },
    }


def machine() -> dict[str, Any]:
    """Return what ran."""
    return {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}


def pooled(pairs: list[list[float]]) -> tuple[float, float]:
    """Return the mean of estimates and its standard error, of [estimate, standard error] pairs.

    >>> pooled([[1.0, 0.3], [2.0, 0.4]])
    (1.5, 0.25)
    """
    values = np.array(pairs)
    return float(values[:, 0].mean()), float(np.sqrt(np.sum(values[:, 1] ** 2)) / len(values))


def summarise(lines: list[dict[str, Any]], target: str, to: str) -> str:
    """Return the table of ratios, means over points and seeds."""
    cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["setting"], line["r"], line["m"]), []).append(line)
    shown = [rule for rule in RULES if rule != MEASURE]
    rows = []
    for (setting, r, m), own in cells.items():
        found = [pooled([line[to][target][rule] for line in own]) for rule in shown]
        best = min(x for x, _ in found)
        rows.append([
            setting, f"{r}", f"{m}",
            *(f"{'*' if x == best else ''}{x:.2f} ± {e:.2f}" for x, e in found),
        ])  # fmt: skip
    return table(["data, classes", "r", "m", *shown], rows)


def summarise_bias(lines: list[dict[str, Any]], kind: str) -> str:
    """Return the table of biases, means over points and seeds, and of their largest noise."""
    cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["setting"], line["r"], line["m"]), []).append(line)
    rows = []
    for (setting, r, m), own in cells.items():
        means = [pooled([line["bias"][kind][rule] for line in own]) for rule in RULES]
        noise = np.mean([[line["bias"][kind][x][1] for x in RULES] for line in own], 0)
        rows.append([
            setting, f"{r}", f"{m}", *(f"{x:.3f}" for x, _ in means),
            f"{noise.min():.3f} to {noise.max():.3f}",
        ])  # fmt: skip
    return table(["data, classes", "r", "m", *RULES, "noise"], rows)


def report(lines: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    parts = ["\n".join(f"- {name}: {text}" for name, text in RULES.items()) + "\n"]
    for target in TARGETS:
        kind, of = target.split("/")
        what = "all parameters" if kind == "all" else "the logits alone"
        of = "the whole data" if of == "full" else "the subset"
        parts.append(
            f"## Squared error to the gradient of {of}, {what}, over that of stratified batches\n\n"
            f"{summarise(lines, target, 'over_stratified')}\n"
        )
    parts.append(
        f"## The same to the gradient of the whole data, all parameters, over that of rule {CHOSEN}, "
        f"paired by draw\n\n{summarise(lines, 'all/full', 'over_chosen')}\n"
    )
    for kind, what in (("all", "all parameters"), ("logits", "the logits alone")):
        parts.append(
            f"## Squared bias over the squared norm of the full gradient, {what}, noise subtracted\n\n"
            f"{summarise_bias(lines, kind)}\n"
        )
    return "\n".join(parts)


def sources_of(lines: list[dict[str, Any]]) -> str:
    """Return the sentence that says how lines were made."""
    commands = list(dict.fromkeys(f"`{line['command']}`" for line in lines))
    commits = ", ".join(sorted({str(line["commit"]) for line in lines}))
    draws = ", ".join(map(str, sorted({line["draws"] for line in lines})))
    return (
        f"{', then '.join(commands)} at commit {commits}, on {lines[0]['device']}, "
        f"{lines[0]['cores']} cores; draws at each point: {draws}"
    )


EXPLANATION = """
Means over points of training and seeds; ± is the standard error from draws; * marks the smallest. A
batch has m examples, a subset r. An orphan is a row of the subset whose class has no pick.
"""
TARGETS = ("all/full", "logits/full", "all/subset", "logits/subset")
