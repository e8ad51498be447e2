"""Selection with earlier picks, or with costs, beside apricot and submodlib."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.benchmarks.peers import dissimilarity, similarity32

Run = Callable[[], tuple[np.ndarray, float]]  # returns the picks and the seconds


def extras(x: np.ndarray, repeats: int) -> Iterator[dict[str, Any]]:
    """Time all contestants on one pool [n, d], with earlier picks and with costs.

    Submodlib takes no initial subset; apricot goes by gain over cost only.
    """
    rows, size = len(x), len(x) // 10
    values = dissimilarity(x, "euclidean")
    given = similarity32(x, "euclidean")
    costs = np.random.default_rng(1).integers(1, 6, rows)
    budget = 3 * size
    first, _ = ours(x, size=size // 2)()
    problems: dict[str, dict[str, Run]] = {
        "initial": {
            "ours": ours(x, size=size, initial=first),
            "apricot": apricot(given, size - len(first), first),
        },
        "costs": {
            "ours": ours(x, costs=costs, budget=budget),
            "apricot": apricot(given, budget, costs=costs),
            "submodlib": submodlib(given, costs, budget, values),
        },
    }
    for what, runs in problems.items():
        for method, run in runs.items():
            seconds = []
            if method != "submodlib":
                run()  # compiles
            for _ in range(1 if method == "submodlib" else repeats):
                picks, taken = run()
                seconds.append(taken)
            objective = float((values.max() - values[picks].min(axis=0)).sum())
            yield {
                "part": "extras", "n": rows, "what": what, "method": method, "picks": len(picks),
                "seconds": statistics.median(seconds), "objective": objective, "runs": len(seconds),
                "cost": int(costs[picks].sum()) if what == "costs" else None,
            }  # fmt: skip


def ours(x: np.ndarray, **asked: Any) -> Run:
    """Select with crest_jax, from embeddings on the device to picks on the host."""
    import jax.numpy as jnp

    from crest_jax import select_coreset

    pool = jnp.asarray(x).block_until_ready()

    def run() -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        picks = np.asarray(select_coreset(pool, method="lazy", **asked).indices)
        return picks, time.perf_counter() - start

    return run


def apricot(
    similarities: np.ndarray,
    count: int,
    first: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> Run:
    """Lazy greedy of apricot from an initial subset, or with costs that ``count`` limits."""
    from apricot import FacilityLocationSelection

    def fit(rows: int, count: int, first: np.ndarray | None) -> tuple[np.ndarray, float]:
        matrix = np.ascontiguousarray(similarities[:rows, :rows])
        start = time.perf_counter()
        model = FacilityLocationSelection(
            count, metric="precomputed", initial_subset=first, optimizer="lazy"
        )
        ranking = model.fit(matrix, sample_cost=None if costs is None else costs[:rows] * 1.0).ranking
        seconds = time.perf_counter() - start
        return ranking if first is None else np.concatenate([first, ranking]), seconds

    def run() -> tuple[np.ndarray, float]:
        few = None if first is None else np.arange(3)
        compilation = min(fit(50, 9, few)[1] for _ in range(2))
        picks, seconds = fit(len(similarities), count, first)
        return picks, max(0.0, seconds - compilation)

    return run


def submodlib(similarities: np.ndarray, costs: np.ndarray, budget: int, values: np.ndarray) -> Run:
    """Lazy greedy of submodlib by gain and by gain over cost; the better choice."""
    from submodlib import FacilityLocationFunction

    def run() -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        function = FacilityLocationFunction(
            n=len(similarities), sijs=similarities, separate_rep=False, mode="dense"
        )
        found = [
            np.array([row for row, _ in function.maximize(
                budget=budget, optimizer="LazyGreedy", costs=costs.tolist(),
                costSensitiveGreedy=by_ratio, show_progress=False,
            )])
            for by_ratio in (False, True)
        ]  # fmt: skip
        seconds = time.perf_counter() - start
        return min(found, key=lambda picks: float(values[picks].min(axis=0).sum())), seconds

    return run
