"""The weights: rows counted at the picks nearest to them, by what a run knows or by looking again."""

from typing import Literal

import jax
import jax.numpy as jnp

from crest_jax.coresets.by_class import nearest_picks
from crest_jax.coresets.coverage import coverage_counts, scaled_up
from crest_jax.coresets.metrics import Metric, Points, take_rows
from crest_jax.types import Array, Coreset

# Where examples of classes without a pick count: there are none, at the nearest pick, at all alike.
Orphans = Literal["none", "nearest", "spread"]


def nearest_counts(
    points: Points, labels: Array, picks: Array, *, metric: Metric, spread: bool
) -> Array:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    As ``coverage_counts`` does, but from the rows, without the dissimilarities of all pairs.

    Args:
      points: [n] rows.
      labels: [n], int32.
      picks: [m], int32; each stands for itself.
      metric: static, any but "precomputed".
      spread: static. Rows whose class has no pick count at all picks in proportion; otherwise at the
        nearest pick of any class.

    Returns:
      [m], float32, summing to ``n``.

    Example:
      >>> points = Points((jnp.array([[0.0], [1.0], [10.0]]),))
      >>> picks, metric = jnp.array([1, 2]), Metric("euclidean", 1.0)
      >>> nearest_counts(points, jnp.zeros(3, int), picks, metric=metric, spread=False).tolist()
      [2.0, 1.0]
    """
    count = labels.shape[0]
    slots, _ = nearest_picks(points, labels, take_rows(points, picks), labels[picks], metric)
    slots = slots.at[picks].set(jnp.arange(picks.shape[0], dtype=jnp.int32))
    counted = jnp.ones(count, jnp.float32)
    if spread:
        counted = jnp.isin(labels, labels[picks], method="sort").astype(jnp.float32)
    found = jnp.zeros(picks.shape[0], jnp.float32).at[slots].add(counted)
    return scaled_up(found, float(count)) if spread else found


nearest_counts_compiled = jax.jit(nearest_counts, static_argnames=("metric", "spread"))


def weighted(
    points: Points,
    labels: Array,
    picks: Array,
    gains: Array,
    nearest: Array,
    metric: Metric,
    orphans: Orphans,
) -> Coreset:
    """Count what each pick stands for; ``orphans`` says where rows of classes without a pick count."""
    if metric.name == "precomputed":
        # Negative similarities improve nobody, but still say which pick is nearest.
        weights = coverage_counts(-points.parts[0].T, labels, picks, spread=orphans == "spread")
        return Coreset(picks, weights, gains, jnp.sum(gains))
    if metric.signed:
        weights = nearest_counts(points, labels, picks, metric=metric, spread=orphans == "spread")
        return Coreset(picks, weights, gains, jnp.sum(gains))
    if orphans == "nearest":
        heads = take_rows(points, picks)
        slots, _ = nearest_picks(points, labels, heads, labels[picks], metric)
        nearest = jnp.where(nearest >= 0, nearest, slots)
    slots = jnp.where(nearest >= 0, nearest, picks.shape[0])
    weights = jnp.zeros(picks.shape[0], jnp.float32).at[slots].add(1.0, mode="drop")
    return Coreset(picks, scaled_up(weights, float(len(labels))), gains, jnp.sum(gains))


weighted_compiled = jax.jit(weighted, static_argnames=("metric", "orphans"))
