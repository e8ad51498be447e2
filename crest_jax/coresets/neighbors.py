"""Selection on the graph of each row to its nearest rows: exact neighbours, in bounded memory.

Blocks of rows are compared with all others by lower bounds of their sums (see ``sums``); the few rows
with the least bounds are looked at directly. Where the last neighbour found is not nearer than the
least bound of a row that was not looked at, all rows are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets import metrics, sums
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.plan import DEFAULT_BUDGET, Plan, check_budget
from crest_jax.coresets.sparse import Graph, check_listed_method, graph_of_entries, graph_plan
from crest_jax.types import Array

_BLOCKS = (256, 64, 16, 4)  # rows compared at once, the most that the budget allows


def check_neighbors(neighbors: Any, metric: str, method: str, *, traced: bool = False) -> None:
    """Refuse what has no graph of neighbours."""
    shown = _checks.brief(neighbors)
    _checks.require(
        not traced,
        f"neighbors is {shown} but inside jit and vmap no graph is built, whose size depends on the "
        "data; select outside.",
    )
    _checks.require(
        metric != "precomputed",
        f"neighbors is {shown} but the similarities are given; keep the largest ones of each row in a "
        "sparse matrix, and leave neighbors out.",
    )
    check_listed_method(method, "a graph of neighbours")
    whole = isinstance(neighbors, (int, np.integer)) and not isinstance(neighbors, bool)
    _checks.require(
        whole and bool(neighbors >= 2),
        f"neighbors is {shown} but must be an integer of at least 2, for each row counts itself; 100 "
        "is usual.",
    )


def plan_neighbors(
    neighbors: int, rows: int, width: int, size: int, batched: bool, memory_budget: int | None
) -> tuple[Plan, int]:
    """Say what a selection needs, and how many rows are compared at once.

    Raises:
      ValueError: on more neighbours than rows, on several problems, and on a budget that is too small.
    """
    _checks.require(
        not batched,
        "neighbors are asked for beside embeddings [p, n, d], but a graph is of one problem; pass the "
        "problems one by one.",
    )
    _checks.require(
        neighbors <= rows,
        f"neighbors is {neighbors} but the pool holds {rows} examples; ask for at most {rows}.",
    )
    budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
    wide, looked = padded(rows), _looked(neighbors, rows)
    plans = [
        graph_plan(
            rows * neighbors, rows, rows, size,
            16 * block * wide + 8 * block * looked * (width + 3) + 8 * wide * width
            + 16 * rows * neighbors,
        )
        for block in _BLOCKS
    ]  # fmt: skip
    fitting = [at for at, plan in enumerate(plans) if plan.memory <= budget]
    at = fitting[0] if fitting else len(plans) - 1
    return check_budget(plans[at], memory_budget), _BLOCKS[at]


def _looked(neighbors: int, rows: int) -> int:
    """Rows that are looked at directly: a few more than the neighbours wanted."""
    return min(padded(rows), neighbors + max(16, neighbors // 4))


def neighbor_graph(
    points: Points, metric: Metric, labels: np.ndarray, counts: np.ndarray, neighbors: int, block: int
) -> Graph:
    """Return the graph of each row to its nearest rows of the same class, itself among them.

    The similarity is 0 at the largest dissimilarity in the graph, where the metric has no fixed one.

    Args:
      points: [n] rows.
      metric: any but "precomputed".
      labels: [n], classes from 0 on.
      counts: [c], rows of each class.
      neighbors: k; of a smaller class all rows.
      block: rows compared at once.

    Example:
      >>> points, counts = Points((jnp.array([[0.0], [1.0], [3.0]]),)), np.array([3])
      >>> metric = Metric("euclidean", 1.0)
      >>> graph = neighbor_graph(points, metric, np.zeros(3, int), counts, 2, 4)
      >>> graph.starts.tolist(), graph.rows.tolist(), graph.top
      ([0, 2, 4, 5], [0, 1, 0, 1, 2], 2.0)
    """
    order = np.argsort(labels, kind="stable")
    wide = padded(int(counts.max()))
    (points,) = sums.centred(metric, jax.tree.map(jnp.asarray, points))
    edges: list[np.ndarray] = []
    values: list[np.ndarray] = []
    first = 0
    for count in counts.tolist():
        own = order[first : first + count]
        first += count
        if count:
            places = np.pad(own, (0, wide - count), mode="edge")
            rows, nearest, apart = _within(
                metrics.take_rows(points, places), metric, count, neighbors, block
            )
            edges.append(np.stack([own[rows], own[nearest]]))
            values.append(apart)
    ends, apart = np.concatenate(edges, axis=1), np.concatenate(values)
    top = float(apart.max()) if metric.fixed_top is None else metric.fixed_top
    return graph_of_entries(ends[0], ends[1], apart, len(labels), len(labels), top)


def _within(
    points: Points, metric: Metric, count: int, neighbors: int, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, their neighbours and how far apart they are [e], of the first ``count`` points."""
    wide = points.rows
    wanted = min(neighbors, wide)
    tile = min(1024, wide)
    tiles = sums.to_tiles(points, tile)
    lengths = sums.lengths(metric, points)
    valid = jnp.asarray(np.arange(wide) < count)
    form = {"metric": metric, "wanted": wanted}
    found: list[np.ndarray] = []
    apart: list[np.ndarray] = []
    sure: list[np.ndarray] = []
    for start in range(0, count, block):
        places = jnp.minimum(jnp.arange(start, start + block, dtype=jnp.int32), wide - 1)
        each = _nearest_rows(
            points, tiles, lengths, valid, places, looked=_looked(neighbors, wide), **form
        )
        for kept, part in zip((found, apart, sure), each, strict=True):
            kept.append(np.asarray(part))
    near, gaps = np.concatenate(found)[:count], np.concatenate(apart)[:count]
    unsure = np.flatnonzero(~np.concatenate(sure)[:count])
    for start in range(0, len(unsure), 64):
        some = unsure[start : start + 64]
        places = jnp.asarray(np.pad(some, (0, 64 - len(some)), mode="edge"), jnp.int32)
        one, other = _among_all(points, tiles, valid, places, **form)
        near[some], gaps[some] = np.asarray(one)[: len(some)], np.asarray(other)[: len(some)]
    real = np.arange(wanted) < min(count, wanted)
    rows = np.repeat(np.arange(count), int(real.sum()))
    return rows, near[:, real].ravel(), gaps[:, real].ravel()


@partial(jax.jit, static_argnames=("metric", "wanted", "looked"))
def _nearest_rows(
    points: Points,
    tiles: Points,
    lengths: Array,
    valid: Array,
    places: Array,
    *,
    metric: Metric,
    wanted: int,
    looked: int,
) -> tuple[Array, Array, Array]:
    """Neighbours [b, k] of some rows, their dissimilarities, and whether [b] they are the nearest."""
    rows, tile = metrics.take_rows(points, places), tiles.parts[0].shape[2]

    def bounds(part: tuple[Points, Array]) -> Array:
        return sums.lower(metric, rows, lengths[places], *part)

    lower = jax.lax.map(bounds, (tiles, lengths.reshape(-1, tile)))
    lower = lower.transpose(1, 0, 2).reshape(len(places), -1)
    every = jnp.arange(lower.shape[1], dtype=jnp.int32)[None, :]
    lower = jnp.where(valid[None, :], lower, jnp.inf)
    lower = jnp.where(every == places[:, None], -jnp.inf, lower)  # a row is its own neighbour
    # Fused with what follows it takes XLA fifteen times as long on a CPU.
    least, found = jax.lax.optimization_barrier(jax.lax.top_k(-lower, looked))
    flat = found.reshape(-1)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, looked, axis=0), rows)
    direct = sums.pairs(metric, repeated, metrics.take_rows(points, flat)).reshape(found.shape)
    near, apart = _sorted(direct, found.astype(jnp.int32), valid, places, wanted)
    everything = looked == lower.shape[1]
    sure = jnp.full(len(places), everything) | (apart[:, -1] < -least[:, -1])
    # A neighbour that does not exist is not nearer than another one.
    sure = sure | (jnp.sum(valid, dtype=jnp.int32) <= looked)
    return near, metric.from_sums(apart), sure


@partial(jax.jit, static_argnames=("metric", "wanted"))
def _among_all(
    points: Points, tiles: Points, valid: Array, places: Array, *, metric: Metric, wanted: int
) -> tuple[Array, Array]:
    """Neighbours [b, k] of some rows, from direct sums to all rows."""

    def one(place: Array) -> tuple[Array, Array]:
        direct = sums.to_all(metric, metrics.take_rows(points, place), tiles).reshape(1, -1)
        every = jnp.arange(direct.shape[1], dtype=jnp.int32)[None, :]
        near, apart = _sorted(direct, every, valid, place[None], wanted)
        return near[0], apart[0]

    near, apart = jax.lax.map(one, places)
    return near, metric.from_sums(apart)


def _sorted(
    direct: Array, found: Array, valid: Array, places: Array, wanted: int
) -> tuple[Array, Array]:
    """Sort sums [b, l] of rows ``found``, the row itself first, the lower one on a tie; keep a few."""
    rank = jnp.where(found == places[:, None], -jnp.inf, jnp.where(valid[found], direct, jnp.inf))
    _, near, apart = jax.lax.sort((rank, found, direct), dimension=1, num_keys=2)
    return near[:, :wanted], apart[:, :wanted]
