"""Means, intervals and paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval (Student's t); NaN for one value.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * spread)


def on_common_seeds(*groups: dict[int, float]) -> np.ndarray:
    """Return the values of several groups on the seeds that all have.

    Args:
      *groups: values by seed.

    Returns:
      [groups, seeds], seeds rising.

    >>> on_common_seeds({0: 1.0, 3: 2.0}, {3: 5.0, 7: 6.0}).tolist()
    [[2.0], [5.0]]
    """
    common = sorted(set.intersection(*map(set, groups)))
    return np.array([[own[seed] for seed in common] for own in groups])


def paired(results: list[dict[str, Any]], method: str, other: str, name: str) -> list[float]:
    """Return the differences of one number between two methods, on the seeds that both have.

    ``results`` are of one budget.
    """
    own, others = on_common_seeds(
        *({r["seed"]: r[name] for r in results if r["method"] == m} for m in (method, other))
    )
    return list(own - others)


def median_seconds(runs: Sequence[dict[str, Any]]) -> float:
    """Return the median seconds of trainings, without evaluation and compilation.

    >>> median_seconds([{"training_seconds": 2.0}, {"training_seconds": 4.0}])
    3.0
    """
    return float(np.median([run["training_seconds"] for run in runs]))


def with_interval(values: Sequence[float], *, scale: float = 1.0, sign: str = "") -> str:
    """Return a mean with its 95 % interval, times ``scale``.

    >>> with_interval([0.01, 0.02, 0.03], scale=100, sign="+")
    '+2.00 ± 2.48'
    """
    if not values:
        return "-"
    mean, half = interval(values)
    text = f"{scale * mean:{sign}.2f}"
    return text if np.isnan(half) else f"{text} ± {scale * half:.2f}"


def equivalent_batch(
    reached: float, sizes: Sequence[int], others: Sequence[float], *, within: float = 4.0
) -> float:
    """Return the size of batch that reaches a value, by those that other sizes reach.

    Linear in the logarithm of the size, beyond the sizes along the nearest two.

    Args:
      reached: an accuracy, say, or the logarithm of an error, negated: what rises with the size.
      sizes: rising.
      others: what they reach; where a larger one reaches less, as much as the smaller counts.
      within: the result lies between the least size over this and the largest times this.

    Returns:
      The size; NaN where size changes nothing.

    >>> sizes, others = (1, 2, 4), (88.0, 89.0, 89.5)
    >>> equivalent_batch(88.5, sizes, others), equivalent_batch(90.0, sizes, others)
    (1.4142135623730951, 8.0)
    """
    logs, best = np.log2(np.asarray(sizes, float)), np.maximum.accumulate(others)
    if best[-1] == best[0]:
        return float("nan")
    place = int(np.clip(np.searchsorted(best, reached), 1, len(best) - 1))
    rise = max(float(best[place] - best[place - 1]), 1e-9)
    slope = (logs[place] - logs[place - 1]) / rise
    found = logs[place - 1] + slope * (reached - best[place - 1])
    most = np.log2(within)
    return float(2.0 ** np.clip(found, logs[0] - most, logs[-1] + most))


def work_in_steps(metrics: dict[str, Any]) -> float:
    """Return all work but evaluation in training steps, a backward pass counted as two forward.

    >>> work_in_steps({"steps": 2, "forward": {"step": 20, "evaluation": 5}, "backward": {"step": 20}})
    2.0
    """
    forward = sum(value for phase, value in metrics["forward"].items() if phase != "evaluation")
    backward = sum(metrics["backward"].values())
    batch = metrics["forward"]["step"] / metrics["steps"]
    return (forward + 2 * backward) / (3 * batch)
