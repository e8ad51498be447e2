"""Sparse similarities as graphs: for each candidate the rows that it is similar to."""

from typing import Any, NamedTuple

import numpy as np

from crest_jax import _checks
from crest_jax.coresets.lists import WINDOW
from crest_jax.coresets.numbers import exponents_of
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.plan import EXACT, Plan, check_budget
from crest_jax.coresets.similarities import require_positive


class Graph(NamedTuple):
    """For each candidate the rows that it is similar to, on the host.

    Attributes:
      rows: [e], int32, the rows of candidate 0 first.
      values: [e], float32, dissimilarities, all below ``top``.
      starts: [m + 1], int64, where the entries of each candidate start.
      num_rows: n.
      top: dissimilarity at which the similarity is 0.
    """

    rows: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    num_rows: int
    top: float


def graph_of_entries(rows: np.ndarray, candidates: np.ndarray, values: np.ndarray, num_rows: int,
                     num_candidates: int, top: float) -> Graph:  # fmt: skip
    """Return the graph of entries [e] in any order; those without similarity are dropped.

    Example:
      >>> one = np.zeros(1, int)
      >>> graph_of_entries(one, one, np.float32([-2]), 1, 2, 0.0).starts.tolist()
      [0, 1, 1]
    """
    order = np.argsort(candidates, kind="stable")
    order = order[values[order] < top]
    starts = np.zeros(num_candidates + 1, np.int64)
    np.cumsum(np.bincount(candidates[order], minlength=num_candidates), out=starts[1:])
    return Graph(rows[order].astype(np.int32), values[order], starts, num_rows, top)


def graph_of_matrix(matrix: Any) -> tuple[Graph, int]:
    """Return the graph of the positive entries, and by which power of two they were multiplied.

    Raises:
      ValueError: on NaN or infinite entries, and where none is positive.
    """
    columns = matrix.astype(np.float64).tocsc()  # a copy, whose duplicates are summed in float64
    columns.sum_duplicates()
    data = columns.data
    bad = ~np.isfinite(data)
    _checks.require(
        not bad.any(),
        f"{bad.sum()} of {len(data)} similarities are NaN or infinite but all must be finite; drop "
        "these entries or set them.",
    )
    positive = data > 0
    lowest, highest = (float(f(data, initial=0.0)) for f in (np.min, np.max))
    _checks.require(
        highest > 0 or lowest < 0,
        "similarities hold no entry but 0 but one must be positive, for else no pick is better than "
        "another; store the positive ones.",
    )
    require_positive(lowest, highest)
    exponent = int(exponents_of(np.array([[highest]]))[0, 0])
    values = -np.ldexp(data[positive], exponent).astype(np.float32)
    kept = np.concatenate([[0], np.cumsum(positive)])
    rows = columns.indices[positive].astype(np.int32)
    return Graph(rows, values, kept[columns.indptr], columns.shape[0], 0.0), exponent


def graph_plan(entries: int, rows: int, candidates: int, size: int, extra: int = 0) -> Plan:
    """Return what a selection from lists needs.

    Args:
      entries: e, of all lists.
      rows: n.
      candidates: m.
      size: picks.
      extra: bytes that making the lists needs above them.

    Example:
      >>> graph_plan(1000, 100, 100, 5).exact
      True
    """
    capacity = roomy(entries)
    memory = (
        max(extra, 8 * capacity) + 8 * capacity + 40 * (padded(rows) + padded(candidates)) + 8 * size
    )
    passes = float(entries) * (2 + np.log2(1 + size))
    return Plan("lazy", True, memory, passes, capacity, 0, 0, EXACT)


def roomy(count: int) -> int:
    """Round up by at most an eighth, so that inputs of nearly the same size share a program.

    Example:
      >>> roomy(1000), roomy(5000)
      (1024, 5120)
    """
    step = max(WINDOW, 1 << max(0, count.bit_length() - 4))
    return -(-max(count, 1) // step) * step


def check_listed_method(method: str, what: str) -> None:
    """Refuse methods that do not read lists."""
    _checks.require(
        method in ("auto", "lazy"),
        f"method is {method!r} but {what} is read by lazy greedy, exactly and without the absent "
        'entries; choose "lazy" or "auto".',
    )


def plan_sparse(matrix: Any, size: int, memory_budget: int | None) -> Plan:
    """Say what a selection from a sparse matrix needs.

    Raises:
      ValueError: on more entries than int32 counts, and on a budget that is too small.
    """
    rows, candidates = matrix.shape
    _checks.require(
        matrix.nnz < 2**31 - 2**24,
        f"similarities have {matrix.nnz} entries but at most 2^31 are counted in int32; keep fewer "
        "neighbours of each row.",
    )
    return check_budget(graph_plan(matrix.nnz, rows, candidates, size), memory_budget)
