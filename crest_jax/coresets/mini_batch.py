"""Weighted medoids inside ``jit``: the selection that CREST makes for every mini-batch."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from crest_jax.coresets import metrics, sums
from crest_jax.coresets.coverage import best_similarities, coverage_counts, covered_share, scaled_up
from crest_jax.coresets.distances import sums_of_all
from crest_jax.coresets.greedy import greedy
from crest_jax.coresets.grouped import assigned, dissimilarities, greedy_in_groups
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.rules import Rules
from crest_jax.data.quotas import covered_as_a_whole, proportional_quotas, sampled_classes
from crest_jax.types import Array, Coreset, Factored, PyTree


def class_side(share: float, rows: int) -> int:
    """Return a ``side`` for ``medoids`` that leaves room for a class to grow.

    Args:
      share: of the largest class among all examples.
      rows: examples in a pool.

    Returns:
      Half as many again as the class has on average, rounded up to a multiple of 16; at least 16.

    Example:
      >>> class_side(0.1, 512)
      80
    """
    return max(1, -(-round(1.5 * share * rows) // 16)) * 16


def most_rounds(share: float, rows: int, size: int, num_classes: int) -> int:
    """Return ``rounds`` for ``medoids`` of a pool that was drawn stratified by class.

    Args:
      share: of the largest class among the examples that are drawn from.
      rows: examples in a pool.
      size: picks in all.
      num_classes: classes.

    Returns:
      At least the largest quota, rounded up to a power of two, so that few programs are compiled.

    Example:
      >>> most_rounds(0.1, 256, 128, 10), most_rounds(0.01, 512, 128, 100)
      (16, 128)
    """
    if size < 2 * num_classes:  # all rows may be one class
        return size
    largest = min(rows, math.floor(share * (1 + 1e-6) * rows) + 2)
    quota = min(size, largest, size * largest // rows + 1)
    return min(size, 1 << (int(quota) - 1).bit_length())


@partial(
    jax.jit, static_argnames=("size", "num_classes", "metric", "gamma", "side", "rounds", "by_class")
)
def medoids(
    embeddings: PyTree,
    labels: Array,
    *,
    size: int,
    num_classes: int,
    metric: str = "euclidean",
    gamma: float | None = None,
    side: int | None = None,
    rounds: int | None = None,
    sample_weights: Array | None = None,
    key: Array | None = None,
    allowed: Array | None = None,
    first: Array | None = None,
    by_class: bool = False,
) -> Coreset:
    """Choose medoids without any check, for use inside ``jit``.

    Args:
      embeddings: [n, d], or ``Factored``, or similarities [n, n].
      labels: [n], int32, in ``[0, num_classes)``.
      size: static, at most ``n``; ``size * n`` below 2^31.
      num_classes: static.
      metric: static, see ``select_coreset``.
      gamma: static, of the metric "rbf"; None: 1 / d.
      side: static, a multiple of 16. Where no class has more examples than this only rows of the same
        class are compared, ``O(c side^2)`` for ``c`` classes; otherwise, and with None, all pairs are,
        ``O(n^2)``. The picks are the same up to float32 rounding.
      rounds: static, see ``greedy``; ``most_rounds`` says how many will do.
      sample_weights: [n], float32, how many examples each row stands for, in the objective and in the
        weights; None: one each.
      key: PRNG key, for pools with more classes than picks. Classes are then drawn at random, those
        whose rows lie farther from the mean more often, and weights undo it: weighted sums come out
        without bias, but for the choice of the medoid. None: the largest classes.
      allowed: [n], bool, rows that may be picked, for one class; None: all.
      first: [k], int32, rows that are picked first, for one class; None: none.
      by_class: static, whether classes stay apart also where that leaves fewer than two picks a class.

    Returns:
      See ``select_coreset``; the weights sum to that of the sample_weights.

    Example:
      >>> medoids(jnp.eye(3), jnp.zeros(3, int), size=3, num_classes=1).weights.tolist()
      [1.0, 1.0, 1.0]
    """
    rows = labels.shape[0]
    counts = jnp.bincount(labels, length=num_classes).astype(jnp.int32)
    points, kind, unit = metrics.prepare(embeddings, metric, gamma)
    # Else XLA scales the rows anew in the loops over all pairs.
    points, unit = jax.lax.optimization_barrier((points, unit))
    # With fewer picks it depends on how many classes the pool has.
    apart = size >= (1 if by_class else 2) * num_classes
    if not (apart or by_class):
        aside = covered_as_a_whole(counts, size)
        labels = jnp.where(aside, 0, labels)
        counts = jnp.where(aside, jnp.zeros_like(counts).at[0].set(rows), counts)
    quotas = proportional_quotas(counts, size, most=rows)
    # Class blocks count a row at the pick that covers it, which with negative similarities none may.
    if not apart or side is None or kind.signed or num_classes * side**2 >= rows**2:
        own_key = None if apart else key
        found = _all_pairs(
            points, labels, counts, quotas, size, kind, sample_weights, own_key, allowed, first, rounds
        )
    else:
        found = jax.lax.cond(
            jnp.max(counts) <= side,
            lambda: _by_class(points, labels, counts, quotas, size, kind, side, sample_weights),
            lambda: _all_pairs(
                points, labels, counts, quotas, size, kind, sample_weights, None, None, None, rounds
            ),
        )
    return found._replace(gains=found.gains * unit, objective=found.objective * unit)


def _all_pairs(
    points: Points,
    labels: Array,
    counts: Array,
    quotas: Array,
    size: int,
    metric: Metric,
    sample_weights: Array | None,
    key: Array | None,
    allowed: Array | None,
    first: Array | None,
    rounds: int | None,
) -> Coreset:
    if metric.name == "precomputed":
        values = -points.parts[0]
    else:
        parts = points.parts
        found = sums_of_all(parts[0] if len(parts) == 1 else Factored(*parts), metric.form)
        if points.blank is not None:
            found = found + sums.without_direction(points.blank[:, None], points.blank[None, :])
        values = metric.from_sums(found)
    factors = None
    if key is not None:
        few = size < jnp.sum(counts > 0, dtype=jnp.int32)
        each = jnp.ones(labels.shape[0], jnp.float32) if sample_weights is None else sample_weights
        apart = each * _apart(points, values, each, metric)
        own = jnp.zeros(counts.shape[0], jnp.float32).at[labels].add(apart)
        drawn, chances = sampled_classes(key, own, counts, size)
        quotas = jnp.where(few, drawn, quotas)
        factors = jnp.where(few, chances, 1.0)
    mass = float(labels.shape[0]) if sample_weights is None else jnp.sum(sample_weights)
    candidates = allowed
    if allowed is not None and first is not None:
        candidates = allowed.at[first].set(True)
    if metric.signed:
        best = best_similarities(-values, labels, allowed=candidates)
        each = best if sample_weights is None else best * sample_weights
        top, floor = jnp.float32(0), -jnp.sum(each)
    else:
        same = (labels[:, None] == labels[None, :]) & (quotas > 0)[labels][:, None]
        same = same if candidates is None else same & candidates[None, :]
        top, floor = metric.top(jnp.max(jnp.where(same, values, 0.0))), jnp.float32(0)
        if candidates is not None:
            least = jnp.min(jnp.where(candidates[None, :], values, jnp.inf), axis=1)
            floor = jnp.sum(least if sample_weights is None else least * sample_weights)
    indices, gains = greedy(values, top, labels, quotas, size, sample_weights, allowed, first, rounds)
    by_row = values if metric.symmetric else values.T
    counted = coverage_counts(by_row, labels, indices, sample_weights, spread=True)
    weights = counted.weights
    if factors is not None:
        weights = scaled_up(weights * factors[labels[indices]], jnp.sum(weights))
    objective = jnp.sum(gains)
    share = covered_share(objective, top, mass, floor)
    return Coreset(indices, weights, gains, objective, counted.assignments, share)


def _apart(points: Points, values: Array, sample_weights: Array, metric: Metric) -> Array:
    """Return how far rows [n] lie from their mean; where there is none, from all others on average."""
    shares = sample_weights / jnp.sum(sample_weights)
    if len(points.parts) > 1 or metric.name == "precomputed":
        return jnp.dot(values - jnp.min(values), shares, precision="highest")
    gaps = points.parts[0] - jnp.dot(shares, points.parts[0], precision="highest")[None, :]
    return jnp.sqrt(jnp.sum(jnp.square(gaps), axis=1))


def _by_class(
    points: Points,
    labels: Array,
    counts: Array,
    quotas: Array,
    size: int,
    metric: Metric,
    side: int,
    sample_weights: Array | None,
) -> Coreset:
    order = jnp.argsort(labels, stable=True)
    starts = jnp.cumsum(counts, dtype=jnp.int32) - counts
    # Places beyond a class repeat its last row, which changes no largest dissimilarity.
    inside = jnp.minimum(jnp.arange(side, dtype=jnp.int32)[None, :], counts[:, None] - 1)
    rows = order[jnp.maximum(starts[:, None] + inside, 0)]
    grouped = metrics.take_rows(points, rows)
    grouped = grouped._replace(parts=tuple(part.transpose(2, 0, 1) for part in grouped.parts))
    values = dissimilarities(metric, grouped, side)
    own = (jnp.arange(side, dtype=jnp.int32)[None, :] < counts[:, None])[None]
    top = metric.top(jnp.max(jnp.where(own, values, 0.0)))
    rounds = min(size, side)
    rules = Rules(weights=None if sample_weights is None else sample_weights[rows])
    tops = jnp.broadcast_to(top, counts.shape)
    found = greedy_in_groups(values, counts, quotas, tops, rounds, rules)
    ends = jnp.cumsum(quotas, dtype=jnp.int32)
    slots = jnp.arange(size, dtype=jnp.int32)
    label = jnp.sum(slots[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    turn = slots - (ends - quotas)[label]
    gains = found.gains[label, turn]
    indices = rows[label, found.places[label, turn]].astype(jnp.int32)
    member = jnp.arange(side, dtype=jnp.int32)[None, :] < counts[:, None]
    assignments = assigned(found.nearest, rows, member, ends - quotas, labels.shape[0])
    objective = jnp.sum(gains)
    mass = float(labels.shape[0]) if sample_weights is None else jnp.sum(sample_weights)
    share = covered_share(objective, top, mass)
    return Coreset(indices, found.weights[label, turn], gains, objective, assignments, share)
