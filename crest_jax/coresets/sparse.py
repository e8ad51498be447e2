"""Selection from sparse similarities: exact lazy greedy on lists, in memory linear in the entries."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.inputs import Pool, restored
from crest_jax.coresets.lazy import begun, finished_by_lists
from crest_jax.coresets.lists import WINDOW, Lists
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.numbers import exponents_of
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.partition import Partition, check_size, partition
from crest_jax.coresets.partitioned import coreset_of
from crest_jax.coresets.plan import EXACT, Plan, check_budget
from crest_jax.coresets.similarities import require_positive
from crest_jax.types import Array, Coreset


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


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse matrix or array of SciPy, whatever its format.

    Example:
      >>> is_sparse(np.eye(2))
      False
    """
    return hasattr(value, "toarray") and hasattr(value, "tocsc")


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


def check_sparse(matrix: Any, labels: Any) -> None:
    """Refuse sparse matrices of a wrong shape or kind, without looking at their values."""
    shape = tuple(matrix.shape)
    _checks.require(
        len(shape) == 2 and min(shape) > 0,
        f"similarities are a sparse array of shape {shape} but must be [n, n] or [n, m] with at least "
        "one row and column; pass a matrix.",
    )
    _checks.require(
        np.dtype(matrix.dtype).kind in "fiub",
        f"similarities have dtype {matrix.dtype} but must be real numbers; pass their real part or "
        "their absolute value.",
    )
    check_square(shape, labels)


def check_square(shape: tuple[int, ...], labels: Any) -> None:
    """Refuse labels where the columns are not the rows."""
    _checks.require(
        labels is None or shape[-2] == shape[-1],
        f"labels are given but similarities have shape {shape}, whose columns are not its rows and "
        "have no classes; leave labels out, or pass a square matrix.",
    )


def _graph_of(matrix: Any) -> tuple[Graph, int]:
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
    capacity = _roomy(entries)
    memory = (
        max(extra, 8 * capacity) + 8 * capacity + 40 * (padded(rows) + padded(candidates)) + 8 * size
    )
    passes = float(entries) * (2 + np.log2(1 + size))
    return Plan("lazy", True, memory, passes, capacity, 0, 0, EXACT)


def _roomy(count: int) -> int:
    """Round up by at most an eighth, so that inputs of nearly the same size share a program."""
    step = max(WINDOW, 1 << max(0, count.bit_length() - 4))
    return -(-max(count, 1) // step) * step


def check_listed_method(method: str, what: str) -> None:
    """Refuse methods that do not read lists."""
    _checks.require(
        method in ("auto", "lazy"),
        f"method is {method!r} but {what} is read by lazy greedy, exactly and without the absent "
        'entries; choose "lazy" or "auto".',
    )


def plan_sparse(
    matrix: Any, size: int, *, labels: Any, method: str, memory_budget: int | None, batched: bool | None
) -> Plan:
    """Check everything but the values of a sparse matrix, and say what a selection from it needs."""
    check_listed_method(method, "a sparse matrix")
    check_sparse(matrix, labels)
    rows, candidates = matrix.shape
    check_size(size, candidates, "columns")
    _checks.require(
        not batched,
        f"batched is {batched} but similarities are one sparse matrix; pass the problems one by one.",
    )
    _checks.require(
        matrix.nnz < 2**31 - 2**24,
        f"similarities have {matrix.nnz} entries but at most 2^31 are counted in int32; keep fewer "
        "neighbours of each row.",
    )
    return check_budget(graph_plan(matrix.nnz, rows, candidates, size), memory_budget)


def select_sparse(
    matrix: Any,
    size: int,
    *,
    labels: Any,
    num_classes: int | None,
    quotas: Any,
    method: str,
    memory_budget: int | None,
    batched: bool | None,
) -> Coreset:
    """Choose columns of a sparse matrix [n, m] of similarities; see ``select_coreset``.

    Entries that are absent, or negative, are similarity 0. Rows to which no pick is similar count at
    all picks in proportion.

    Raises:
      ValueError: as ``select_coreset``.
    """
    plan_sparse(
        matrix, size, labels=labels, method=method, memory_budget=memory_budget, batched=batched
    )
    parts = partition(labels, (matrix.shape[1],), size, quotas, num_classes)
    graph, exponent = _graph_of(matrix)
    picks, gains = choose_listed(graph, parts)
    square = matrix.shape[0] == matrix.shape[1]
    nearest = _most_similar(graph, parts, picks)
    if square:  # a pick stands for itself
        nearest[picks] = np.arange(size)
    weights = np.bincount(nearest[nearest >= 0], minlength=size).astype(np.float64)
    weights *= graph.num_rows / weights.sum()
    found = coreset_of(picks, weights, gains, float(gains.sum(dtype=np.float64)))
    pool = Pool(Points(()), Metric("precomputed", 1.0), np.array([exponent]), False)
    return restored(found, pool)


def _entries_of(graph: Graph, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the entries of some candidates [k], one after the other, and whose [0, k) they are."""
    lengths = np.diff(graph.starts)[candidates]
    firsts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(candidates)), lengths)
    return np.arange(len(owners)) + (graph.starts[candidates] - firsts)[owners], owners


def _most_similar(graph: Graph, parts: Partition, picks: np.ndarray) -> np.ndarray:
    """Return the slot [n] of the pick most similar to each row, the earlier one on a tie; -1 for none.

    Of its class, or of any where given quotas leave its class none.
    """
    places, slots = _entries_of(graph, picks)
    rows, values = graph.rows[places], graph.values[places]
    if parts.number > 1:
        labels = parts.labels[0]
        allowed = labels[rows] == labels[picks[slots]]
        if not parts.spread:
            allowed |= parts.quotas[0][labels[rows]] == 0
        rows, values, slots = rows[allowed], values[allowed], slots[allowed]
    order = np.lexsort((slots, values, rows))
    rows, slots = rows[order], slots[order]
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    nearest = np.full(graph.num_rows, -1, np.int64)
    nearest[rows[first]] = slots[first]
    return nearest


def choose_listed(graph: Graph, parts: Partition) -> tuple[np.ndarray, np.ndarray]:
    """Run lazy greedy on a graph, class by class; picks [m] and gains [m], float32.

    Example:
      >>> rows, candidates, values = np.array([0, 1]), np.array([0, 1]), np.float32([-1, -2])
      >>> graph = graph_of_entries(rows, candidates, values, 2, 2, 0.0)
      >>> picks, gains = choose_listed(graph, partition(None, (2,), 1, "proportional", None))
      >>> picks.tolist(), gains.tolist()
      ([1], [2.0])
    """
    quotas, counts = parts.quotas[0], parts.counts[0]
    if parts.number == 1:
        return _run(graph, int(quotas[0]), len(graph.starts) - 1, graph.num_rows, len(graph.rows))
    labels = parts.labels[0]
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    places, owners = _entries_of(graph, order)
    kept = labels[graph.rows[places]] == labels[order[owners]]
    places, owners = places[kept], owners[kept]
    rows, values = rank[graph.rows[places]], graph.values[places]
    ends = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(order)))])
    firsts = np.cumsum(counts) - counts
    most = int(counts.max())
    longest = max(int(ends[f + c] - ends[f]) for f, c in zip(firsts, counts, strict=True))
    picks, gains = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for first, count, quota in zip(firsts.tolist(), counts.tolist(), quotas.tolist(), strict=True):
        if quota == 0:
            continue
        own = slice(int(ends[first]), int(ends[first + count]))
        starts = ends[first : first + count + 1] - ends[first]
        inside = (rows[own] - first).astype(np.int32)
        part = Graph(inside, values[own], starts, count, graph.top)
        found = _run(part, quota, most, most, longest, int(quotas.max()))
        picks.append(order[first + found[0]])
        gains.append(found[1])
    return np.concatenate(picks), np.concatenate(gains)


def _run(
    graph: Graph, quota: int, candidates: int, rows: int, entries: int, rounds: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Run on a graph padded to so many candidates, rows and entries."""
    lengths = np.diff(graph.starts)
    wide, capacity = padded(candidates), _roomy(entries)
    similarities = graph.top - graph.values.astype(np.float64)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    gains = np.bincount(owners, similarities, minlength=len(lengths))

    def filled(values: np.ndarray, count: int, fill: float, kind: Any) -> Array:
        return jnp.asarray(np.pad(values, (0, count - len(values)), constant_values=fill).astype(kind))

    lists = Lists(
        filled(graph.rows, capacity, 0, np.int32),
        filled(graph.values, capacity, 0, np.float32),
        filled(graph.starts[:-1], wide, 0, np.int32),
        filled(lengths, wide, 0, np.int32),
    )
    cover = np.full(graph.num_rows, graph.top)
    size = min(candidates, -(-(quota if rounds is None else rounds) // 32) * 32)
    picks, gains = _greedy(
        lists, filled(gains, wide, -1.0, np.float32),
        filled(cover, padded(rows), -np.inf, np.float32), jnp.int32(quota), size=size,
    )  # fmt: skip
    return np.asarray(picks)[:quota].astype(np.int64), np.asarray(gains)[:quota]


@partial(jax.jit, static_argnames="size")
def _greedy(
    lists: Lists, first: Array, cover: Array, quota: Array, *, size: int
) -> tuple[Array, Array]:
    """Choose from lists, cover [n] and the gains [m] of first picks; -1 for none to pick."""
    run = begun(jnp.max(cover), cover, first, first >= 0, size)
    # The first gains are known, not only bounded: else all that tie would be evaluated.
    run = finished_by_lists(lists, run._replace(stamp=jnp.zeros_like(run.stamp)), quota)
    return run.picks, run.gains
