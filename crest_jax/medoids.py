"""Weighted medoids inside ``jit``: the selection that CREST makes for every mini-batch."""

from functools import partial

import jax
import jax.numpy as jnp

from crest_jax import metrics
from crest_jax.embeddings import Factored, squared_distances
from crest_jax.facility_location import coverage_counts, greedy, largest_remainder
from crest_jax.grouped_greedy import dissimilarities, greedy_in_groups
from crest_jax.types import Array, Coreset, PyTree


def class_side(share: float, rows: int) -> int:
    """Return a ``side`` for ``medoids`` that leaves room for a class to grow.

    Args:
      share: of the largest class among all examples.
      rows: examples in a pool.

    Returns:
      Half as many again as the class has on average, rounded up to a multiple of 16.

    Example:
      >>> class_side(0.1, 512)
      80
    """
    return -(-round(1.5 * share * rows) // 16) * 16


@partial(jax.jit, static_argnames=("size", "num_classes", "metric", "side"))
def medoids(
    embeddings: PyTree,
    labels: Array,
    *,
    size: int,
    num_classes: int,
    metric: str = "euclidean",
    side: int | None = None,
    masses: Array | None = None,
) -> Coreset:
    """Choose medoids without any check, for use inside ``jit``.

    Args:
      embeddings: [n, d], or ``Factored``, or similarities [n, n].
      labels: [n], int32, in ``[0, num_classes)``.
      size: static, at most ``n``; ``size * n`` below 2^31.
      num_classes: static.
      metric: static, see ``select_coreset``.
      side: static, a multiple of 16. Where no class has more examples than this, and each has a pick,
        only rows of the same class are compared, ``O(c side^2)`` for ``c`` classes; otherwise, and with
        None, all pairs are, ``O(n^2)``. The picks are the same up to float32 rounding.
      masses: [n], float32, how many examples each row stands for, in the objective and in the weights;
        None: one each.

    Returns:
      See ``select_coreset``.

    Example:
      >>> medoids(jnp.eye(3), jnp.zeros(3, int), size=3, num_classes=1).weights.tolist()
      [1.0, 1.0, 1.0]
    """
    if size < 2 * num_classes:
        labels, num_classes = jnp.zeros_like(labels), 1
    counts = jnp.bincount(labels, length=num_classes)
    quotas = largest_remainder(counts, size)
    rows = labels.shape[0]
    if side is None or metric == "precomputed" or num_classes * side**2 >= rows**2:
        return _all_pairs(embeddings, labels, quotas, size, metric, masses)
    fits = (jnp.max(counts) <= side) & jnp.all((quotas > 0) | (counts == 0))
    return jax.lax.cond(
        fits,
        lambda: _by_class(embeddings, labels, counts, quotas, size, metric, side, masses),
        lambda: _all_pairs(embeddings, labels, quotas, size, metric, masses),
    )


def _all_pairs(
    embeddings: PyTree, labels: Array, quotas: Array, size: int, metric: str, masses: Array | None
) -> Coreset:
    if metric == "precomputed":
        values, top = -embeddings.astype(jnp.float32), jnp.float32(0)
    else:
        kind = metrics.make_metric(metric, embeddings)
        parts = metrics.as_float32(embeddings, metric).parts
        values = kind.from_squared(squared_distances(parts[0] if len(parts) == 1 else Factored(*parts)))
        same = labels[:, None] == labels[None, :]
        top = kind.top(jnp.max(jnp.where(same, values, 0.0)))
    indices, gains = greedy(values, top, labels, quotas, size, masses)
    weights = coverage_counts(values, labels, indices, masses)
    return Coreset(indices, weights, gains, jnp.sum(gains))


def _by_class(
    embeddings: PyTree,
    labels: Array,
    counts: Array,
    quotas: Array,
    size: int,
    metric: str,
    side: int,
    masses: Array | None,
) -> Coreset:
    kind = metrics.make_metric(metric, embeddings)
    order = jnp.argsort(labels, stable=True)
    starts = jnp.cumsum(counts) - counts
    # Places beyond a class repeat its last row, which changes no largest dissimilarity.
    inside = jnp.minimum(jnp.arange(side)[None, :], counts[:, None] - 1)
    rows = order[jnp.maximum(starts[:, None] + inside, 0)]
    parts = tuple(
        part[rows].transpose(2, 0, 1) for part in metrics.as_float32(embeddings, metric).parts
    )
    values = dissimilarities(kind, parts, side)
    own = (jnp.arange(side)[None, :] < counts[:, None])[None]
    top = kind.top(jnp.max(jnp.where(own, values, 0.0)))
    rounds = min(size, side)
    own_masses = None if masses is None else masses[rows]
    tops = jnp.broadcast_to(top, counts.shape)
    found = greedy_in_groups(values, counts, quotas, tops, rounds, own_masses)
    ends = jnp.cumsum(quotas)
    slots = jnp.arange(size, dtype=jnp.int32)
    label = jnp.sum(slots[:, None] >= ends[None, :], axis=1)
    turn = slots - (ends - quotas)[label]
    gains = found.gains[label, turn]
    indices = rows[label, found.places[label, turn]].astype(jnp.int32)
    return Coreset(indices, found.weights[label, turn], gains, jnp.sum(gains))
