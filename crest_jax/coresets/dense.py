"""Selection on stored similarities: the classes of many problems as one batch of small groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets import metrics
from crest_jax.coresets.by_class import nearest_picks
from crest_jax.coresets.compiling import jit_wide
from crest_jax.coresets.coverage import coverage_counts, scaled_up
from crest_jax.coresets.grouped import GroupPicks, dissimilarities, greedy_in_groups
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.nearest import nearest_counts
from crest_jax.coresets.partition import Partition
from crest_jax.coresets.plan import dense_sides, problems_at_once
from crest_jax.types import Array, Coreset


def choose_dense(
    points: Points,
    partition: Partition,
    *,
    size: int,
    metric: Metric,
    batched: bool,
) -> Coreset:
    """Solve ``p`` problems, as many at a time as a cache holds.

    Args:
      points: leaves [p, n, ...], or [n, ...] if not ``batched``; for the metric "precomputed" one
        part, similarities.
      partition: the classes and their quotas, summing to ``size``.
      size: picks of each problem.
      metric: of the points.
      batched: whether there is a leading axis of problems; if not, ``p = 1`` and the result has none.
    """
    labels, counts, quotas, spread = partition
    problems, classes = counts.shape
    order = np.argsort(_narrow(labels, classes), axis=1, kind="stable").astype(np.int32)
    # Rounded up, so that data of the same shape shares one compiled program.
    clients, side = dense_sides(int(counts.max()))
    rounds = -(-int(quotas.max()) // 4) * 4
    orphans = partition.orphans
    step = min(problems, problems_at_once(classes, (clients, side)))
    blocks = -(-problems // step)
    sizes = np.stack([counts, quotas]).astype(np.int32)
    # Separate programs: compiled as one, XLA repeats the gathering in every use.
    grouping = {"side": side, "blocks": blocks, "metric": metric, "batched": batched}
    rows, parts = _group(points, order, sizes, **grouping)
    picks = [_solve(*part, clients=clients, rounds=rounds, metric=metric) for part in parts]
    needed = (orphans and not spread) or metric.signed
    own = jnp.asarray(labels) if needed else None
    form = {"size": size, "metric": metric, "batched": batched, "spread": orphans and spread}
    return _ungroup(points, own, rows, picks, sizes, **form)


def _narrow(labels: np.ndarray, classes: int) -> np.ndarray:
    """Narrow labels, which NumPy sorts in linear time."""
    return labels.astype(np.uint8 if classes <= 256 else np.uint16 if classes <= 65_536 else np.int32)


@partial(jax.jit, static_argnames=("side", "blocks", "metric", "batched"))
def _group(
    points: Points,
    order: Array,
    sizes: Array,
    *,
    side: int,
    blocks: int,
    metric: Metric,
    batched: bool,
) -> tuple[Array, list[tuple[Points, Array, Array]]]:
    """Sort by class: rows [p, c * side], and the blocks that ``_solve`` takes."""
    if not batched:
        points = jax.tree.map(lambda x: x[None], points)
    counts, quotas = sizes
    problems, classes = counts.shape
    starts = jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    # Places beyond a class repeat its last row, which changes no largest dissimilarity.
    inside = jnp.minimum(jnp.arange(side, dtype=jnp.int32)[None, None, :], counts[:, :, None] - 1)
    places = jnp.maximum(starts[:, :, None] + inside, 0).reshape(problems, -1)
    rows = jnp.take_along_axis(order, places, axis=1)
    step = -(-problems // blocks)
    found = []
    for first in range(0, problems, step):
        block = slice(first, first + step)
        own = rows[block]
        pool = jax.tree.map(lambda x, block=block: x[block], points)
        if metric.name == "precomputed":
            of_class = jax.vmap(lambda matrix, own: matrix[own][:, own], in_axes=(None, 0))
            matrix = jax.vmap(of_class)(pool.parts[0], own.reshape(-1, classes, side))
            grouped = Points((matrix.reshape(-1, side, side),))
        else:
            offsets = jnp.arange(len(own), dtype=jnp.int32)[:, None] * order.shape[1]
            flat = (own + offsets).reshape(-1)
            pool = jax.tree.map(lambda x, flat=flat: x.reshape(-1, *x.shape[2:])[flat], pool)
            grouped = Points(
                tuple(part.reshape(-1, side, part.shape[1]).transpose(2, 0, 1) for part in pool.parts),
                None if pool.blank is None else pool.blank.reshape(-1, side),
            )
        found.append((grouped, counts[block], quotas[block]))
    return rows, found


@partial(jit_wide, static_argnames=("clients", "rounds", "metric"))
def _solve(
    points: Points, counts: Array, quotas: Array, *, clients: int, rounds: int, metric: Metric
) -> GroupPicks:
    sizes = counts.reshape(-1)
    if metric.name == "precomputed":
        matrix = points.parts[0]
        if metric.symmetric:
            values = -matrix[:, :clients].transpose(1, 0, 2)
        else:
            values = -matrix[:, :, :clients].transpose(2, 0, 1)
        none = jnp.zeros(len(sizes), jnp.float32)
        return greedy_in_groups(
            values, sizes, quotas.reshape(-1), none, rounds, symmetric=metric.symmetric
        )
    values = dissimilarities(metric, points, clients)
    largest = jnp.max(jnp.max(values, axis=0), axis=1).reshape(counts.shape)
    top = metric.top(jnp.max(jnp.where(quotas > 0, largest, 0.0), axis=1, keepdims=True))
    top = jnp.broadcast_to(top, counts.shape).reshape(-1)
    return greedy_in_groups(values, sizes, quotas.reshape(-1), top, rounds)


@partial(jax.jit, static_argnames=("size", "metric", "batched", "spread"))
def _ungroup(
    points: Points,
    labels: Array | None,
    rows: Array,
    blocks: list[GroupPicks],
    sizes: Array,
    *,
    size: int,
    metric: Metric,
    batched: bool,
    spread: bool,
) -> Coreset:
    """Line up the picks of each problem, class by class; labels [p, n] where weights need them."""
    if not batched:
        points = jax.tree.map(lambda x: x[None], points)
    found = GroupPicks(*(jnp.concatenate(leaves) for leaves in zip(*blocks, strict=True)))
    quotas = sizes[1]
    problems, classes = quotas.shape
    rounds = found.places.shape[1]
    side = rows.shape[1] // classes
    ends = jnp.cumsum(quotas, axis=1, dtype=jnp.int32)
    slots = jnp.arange(size, dtype=jnp.int32)[None, :]
    label = jnp.sum(slots[:, :, None] >= ends[:, None, :], axis=2, dtype=jnp.int32)
    round_ = slots - jnp.take_along_axis(ends - quotas, label, axis=1)

    def lined_up(result: Array) -> Array:
        wide = result.reshape(problems, classes * rounds)
        return jnp.take_along_axis(wide, label * rounds + round_, axis=1)

    picks = jnp.take_along_axis(rows, label * side + lined_up(found.places), axis=1)
    gains, weights = lined_up(found.gains), lined_up(found.weights)
    if labels is not None and metric.name == "precomputed":
        # Negative similarities improve nobody, but still say which pick is nearest.
        count = partial(coverage_counts, spread=spread)
        weights = jax.vmap(lambda s, own, heads: count(-s.T, own, heads))(
            points.parts[0], labels, picks
        )
    elif labels is not None and metric.signed:
        own_counts = partial(nearest_counts, metric=metric, spread=spread)
        weights = jax.lax.map(lambda x: own_counts(*x), (points, labels, picks))
    elif labels is not None:
        weights = weights + _orphans(points, labels, picks, metric, classes)
    elif spread:
        total = float(points.parts[0].shape[1])
        weights = jax.vmap(lambda own: scaled_up(own, total))(weights)
    coreset = Coreset(picks, weights, gains, jnp.sum(gains, axis=1))
    return coreset if batched else jax.tree.map(lambda x: x[0], coreset)


def _orphans(points: Points, labels: Array, picks: Array, metric: Metric, classes: int) -> Array:
    """Rows [p, m] of classes without a pick, counted at the nearest pick of any class."""

    def one(args: tuple[Points, Array, Array]) -> Array:
        rows, own, heads = args
        slots, _ = nearest_picks(rows, own, metrics.take_rows(rows, heads), own[heads], metric)
        has_pick = jnp.zeros(classes, bool).at[own[heads]].set(True)
        return jnp.zeros(heads.shape[0], jnp.float32).at[slots].add(jnp.where(has_pick[own], 0.0, 1.0))

    return jax.lax.map(one, (points, labels, picks))
