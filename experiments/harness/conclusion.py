"""What a comparison says, in sentences that its seeds can carry."""

import math

import numpy as np

from experiments.harness.runs import Run, accuracy_name, accuracy_of, by_method
from experiments.harness.stats import interval, median_seconds, paired, with_interval

BASELINES = ("stratified", "random")  # the first that is there is what others are held against


def in_words(runs: list[Run]) -> list[str]:
    """Say which method is best, by how much, how sure that is, and what it takes.

    Args:
      runs: of a comparison; of several budgets the largest counts.

    Returns:
      One line for each of these that the runs can answer.
    """
    cut = [run for run in runs if run["method"] != "full"]
    if not cut:
        return []
    budget = max(run["budget"] for run in cut)
    cut = [run for run in cut if run["budget"] == budget]
    groups = by_method(cut)
    means = {name: float(np.mean([accuracy_of(run) for run in own])) for name, own in groups.items()}
    best = max(means, key=lambda name: means[name])
    values = with_interval([accuracy_of(run) for run in groups[best]], scale=100)
    lines = [f"Most accurate after {groups[best][0]['steps']} steps: {best}, {values} %."]
    rival = _rival(best, means)
    if rival is None:
        return lines
    lines.append(_lead(cut, best, rival))
    own, other = (median_seconds(groups[name]) for name in (best, rival))
    lines.append(
        f"Time: {own:.1f} s a run, {rival} batches {other:.1f} s ({own / other:.2f} times as long)."
    )
    return lines


def _rival(best: str, means: dict[str, float]) -> str | None:
    """Return what the best method is held against."""
    others = [name for name in means if name != best]
    baseline = next((name for name in BASELINES if name in others), None)
    if baseline is not None and best != BASELINES[0]:
        return baseline
    return max(others, key=lambda name: means[name], default=None)


def _lead(runs: list[Run], best: str, rival: str) -> str:
    """Say how far one method is ahead of another, and whether the seeds show it."""
    leads = paired(runs, best, rival, accuracy_name(runs[0]))
    if not leads:
        return f"{best} and {rival} have no seed in common, so their difference is not known."
    mean, half = (100 * x for x in interval(leads))
    told = f"It is {mean:.2f} points ahead of {rival} in as many steps"
    if math.isnan(half):
        return f"{told}; one seed does not show which is better: pass --seeds 0 1 2 3 4."
    told += f", 95 % interval {mean - half:.2f} to {mean + half:.2f} ({len(leads)} seeds)"
    return f"{told}: {'clearly ahead' if mean > half else 'these seeds do not show which is better'}."
