"""The tables of a report."""

import numpy as np
from scipy import stats

from experiments.harness.runs import Run, accuracy_name, accuracy_of, by_method, seconds_to
from experiments.harness.stats import median_seconds, paired, with_interval, work_in_steps
from experiments.harness.timing import TRAINING

SPLIT = (*TRAINING, "other")
SHARES = (0.90, 0.95, 0.98)  # of full training's accuracy


def method_table(runs: list[Run]) -> list[list[str]]:
    """Every method: accuracy, differences, seconds and what they went to, cost, regions.

    Differences are paired by seed; ± is the 95 % interval; seconds are medians.
    """
    groups = by_method(runs)
    full = [accuracy_of(run) for run in groups.get("full", [])]
    full_seconds = median_seconds(groups["full"]) if full else None
    rows = [
        [
            "method", "seeds", "steps", "accuracy, %", "relative error to full, %",
            "difference to random, points", "difference to stratified, points", "seconds",
            "speed-up over full", *SPLIT, "compile", "cost in training steps", "regions", "median rho",
        ]
    ]  # fmt: skip
    for name, own in groups.items():
        alike = [r for r in runs if r["budget"] == own[0]["budget"]]
        errors = [float(100 * abs(accuracy_of(run) / np.mean(full) - 1)) for run in own] if full else []
        seconds = median_seconds(own)
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
                f"{full_seconds / seconds:.1f}" if full_seconds else "",
                *(f"{np.median([run['seconds'][phase] for run in own]):.1f}" for phase in SPLIT),
                f"{max(run['seconds']['compile'] for run in own):.1f}",
                f"{np.median([work_in_steps(run) for run in own]):.0f}", *_regions(own),
            ]
        )  # fmt: skip
    return rows


def _regions(runs: list[Run]) -> tuple[str, str]:
    """Return the regions and the relative error of their models at the checks, as medians."""
    if "num_regions" not in runs[0]:
        return "", ""
    errors = [row["rho"] for run in runs for row in run["checks"] if row["rho"] is not None]
    regions = np.median([run["num_regions"] for run in runs])
    return f"{regions:.0f}", f"{np.median(errors):.3f}" if errors else ""


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


def region_rows(runs: list[Run]) -> list[list[str]]:
    """How regions grow over training: lengths, their rank correlation with time, and the share out."""
    head = [
        "method", "seeds", "regions", "median length, first half", "second half", "longest",
        "length: rank correlation with time", "examples excluded at the end",
    ]  # fmt: skip
    rows = []
    for name, own in by_method(runs).items():
        if own[0]["method"] != "crest":
            continue
        early, late, longest, ranks, counts, out = [], [], [], [], [], []
        for run in own:
            begun = [row["step"] for row in run["checks"] if row["began_region"]]
            ends = [row["step"] for row in run["checks"] if row["reason"] == "span_end"]
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
