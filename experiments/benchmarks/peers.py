"""Facility location by other packages, and how far a choice is from the best."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def dissimilarity(x: np.ndarray, kernel: str) -> np.ndarray:
    """Return dissimilarities [n, n] in float64 from embeddings [n, d]."""
    from scipy.spatial.distance import cdist

    distances = cdist(x.astype(np.float64), x.astype(np.float64))
    return -np.expm1(-distances / x.shape[1]) if kernel == "exponential" else distances


def gaps(values: np.ndarray, picks: np.ndarray, top: float) -> np.ndarray:
    """Return by how much each pick's gain falls short of the best one, relative to it, in float64.

    All gains are kept up to date: a pick changes them only through the rows that it covers better.

    Args:
      values: [n, n], float64 dissimilarities.
      picks: [m], in the order of the choice.
      top: dissimilarity at which a row counts as not covered.
    """
    cover = np.full(len(values), top)
    gains = np.maximum(top - values, 0).sum(axis=0)
    nothing = 1e-12 * gains.max()  # rounding that the updates leave behind
    found = np.zeros(len(picks))
    free = np.ones(len(values), bool)
    for t, pick in enumerate(picks):
        best = gains[free].max()
        found[t] = (best - gains[pick]) / best if best > nothing else 0.0
        free[pick] = False
        closer = np.flatnonzero(values[pick] < cover)
        for rows in np.array_split(closer, max(1, len(closer) // 256)):
            old, new = cover[rows, None], values[pick, rows][:, None]
            gains -= (np.maximum(old - values[rows], 0) - np.maximum(new - values[rows], 0)).sum(axis=0)
        cover[closer] = values[pick, closer]
    return found


def objective(x: np.ndarray, picks: np.ndarray, kernel: str, top: float) -> float:
    """Return ``sum_i max_j (top - u_ij)`` in float64, for all methods alike."""
    from scipy.spatial.distance import cdist

    total = 0.0
    for rows in np.array_split(x, max(1, len(x) * len(picks) // 50_000_000)):
        values = cdist(rows.astype(np.float64), x[picks].astype(np.float64))
        if kernel == "exponential":
            values = -np.expm1(-values / x.shape[1])
        total += (top - values.min(axis=1)).sum()
    return total


def run_ours(
    x: np.ndarray, size: int, kernel: str, budget: int | None = None
) -> tuple[np.ndarray, float]:
    """Select with crest_jax, from embeddings on the device to picks on the host."""
    import jax.numpy as jnp

    from crest_jax import select_coreset

    pool = jnp.asarray(x).block_until_ready()
    start = time.perf_counter()
    picks = select_coreset(pool, size, metric=kernel, method="lazy", memory_budget=budget).indices
    found = np.asarray(picks)
    return found, time.perf_counter() - start


def run_ours_sparse(graph: Any, size: int) -> tuple[np.ndarray, float]:
    """Select with crest_jax from a sparse matrix of similarities."""
    from crest_jax import select_coreset

    start = time.perf_counter()
    found = np.asarray(select_coreset(graph, size, metric="precomputed").indices)
    return found, time.perf_counter() - start


def run_ours_neighbors(x: np.ndarray, size: int, neighbors: int) -> tuple[np.ndarray, float]:
    """Select with crest_jax from embeddings, by the graph of nearest neighbours that it builds."""
    from crest_jax import select_coreset

    start = time.perf_counter()
    found = np.asarray(select_coreset(x, size, neighbors=neighbors).indices)
    return found, time.perf_counter() - start


def similarity32(x: np.ndarray, kernel: str) -> np.ndarray:
    """Return the similarities in float32, rounded from float64: what the peers are given."""
    values = dissimilarity(x, kernel)
    top = 1.0 if kernel == "exponential" else values.max()
    return (top - values).astype(np.float32)


def run_submodlib(similarities: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Lazy greedy of submodlib on a ready matrix."""
    from submodlib import FacilityLocationFunction

    start = time.perf_counter()
    function = FacilityLocationFunction(
        n=len(similarities), sijs=similarities, separate_rep=False, mode="dense"
    )
    found = function.maximize(
        budget=size, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
        show_progress=False,
    )  # fmt: skip
    return np.array([row for row, _ in found]), time.perf_counter() - start


def run_submodlib_sparse(graph: Any, size: int, neighbors: int) -> tuple[np.ndarray, float]:
    """Lazy greedy of submodlib on a ready sparse matrix."""
    from scipy.sparse import csr_matrix
    from submodlib import FacilityLocationFunction

    start = time.perf_counter()
    function = FacilityLocationFunction(
        n=graph.shape[0], sijs=csr_matrix(graph), separate_rep=False, mode="sparse",
        num_neighbors=neighbors,
    )  # fmt: skip
    found = function.maximize(
        budget=size, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
        show_progress=False,
    )  # fmt: skip
    return np.array([row for row, _ in found]), time.perf_counter() - start


def run_apricot(similarities: Any, size: int) -> tuple[np.ndarray, float]:
    """Lazy greedy of apricot on a ready matrix, dense or sparse; its compilation is taken off."""
    from apricot import FacilityLocationSelection

    def fit(matrix: Any, count: int) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        model = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy", verbose=False)
        return model.fit(matrix).ranking, time.perf_counter() - start

    tiny = similarities[:50][:, :50]
    compilation = min(fit(tiny, 3)[1] for _ in range(2))
    picks, seconds = fit(similarities, size)
    return picks, max(0.0, seconds - compilation)


def sparse_similarities(x: np.ndarray, kernel: str, neighbours: int = 100) -> tuple[Any, float]:
    """Return similarities of each row to its nearest neighbours only, and the seconds that took."""
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestNeighbors

    start = time.perf_counter()
    distances, rows = NearestNeighbors(n_neighbors=neighbours, n_jobs=1).fit(x).kneighbors(x)
    values = np.exp(-distances / x.shape[1]) if kernel == "exponential" else distances.max() - distances
    pointers = np.arange(0, x.shape[0] * neighbours + 1, neighbours)
    matrix = csr_matrix((values.ravel(), rows.ravel(), pointers), shape=(len(x), len(x)))
    return matrix.maximum(matrix.T).tocsr(), time.perf_counter() - start


def submodlib_by_class(x: np.ndarray, labels: np.ndarray, quotas: np.ndarray) -> tuple[Any, Any]:
    """Select as the public CREST code does: class by class, weights counted row by row."""
    from submodlib import FacilityLocationFunction

    picks, weights = [], []
    for label, quota in enumerate(quotas):
        rows = np.where(labels == label)[0]
        function = FacilityLocationFunction(
            n=len(rows), data=x[rows], metric="euclidean", mode="dense", separate_rep=False
        )
        found = function.maximize(
            budget=int(quota), optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
            show_progress=False,
        )  # fmt: skip
        order = np.array([row for row, _ in found])
        similarities = function.sijs
        counts = np.zeros(len(order))
        for row in range(len(rows)):
            if np.max(similarities[row, order]) > 0:
                counts[np.argmax(similarities[row, order])] += 1
        picks.append(rows[order])
        weights.append(counts)
    return picks, weights


def growth(run: Callable[[], Any]) -> float:
    """Growth of resident memory while running, MiB (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")

    def field(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    before = field("VmRSS")
    run()
    return field("VmHWM") - before
