"""The weights: rows counted at the picks nearest to them, by what a run knows or by looking again."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from crest_jax.coresets.by_class import nearest_picks
from crest_jax.coresets.coverage import (
    Counted,
    best_similarities,
    coverage_counts,
    covered_share,
    scaled_up,
)
from crest_jax.coresets.metrics import Metric, Points, pad_rows, take_rows
from crest_jax.types import Array, Coreset

# Where examples of classes without a pick count: there are none, at the nearest pick, at all alike.
Orphans = Literal["none", "nearest", "spread"]


def nearest_counts(
    points: Points,
    labels: Array,
    heads: Points,
    picks: Array | None = None,
    each: Array | None = None,
    earlier: Array | None = None,
    *,
    metric: Metric,
    spread: bool,
) -> Counted:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    As ``coverage_counts`` does, but from the rows, without the dissimilarities of all pairs.

    Args:
      points: [n] rows.
      labels: [n], int32.
      heads: [m] rows, the picks.
      picks: [m], int32, which rows these are, so that each stands for itself; None: they lie elsewhere,
        and there is one class.
      each: [n], float32, what rows count; None: one each.
      earlier: [n], dissimilarities to the nearest row of elsewhere, for which rows at least as near to
        it as to any pick count; None: there are none.
      metric: static, any but "precomputed".
      spread: static. Rows whose class has no pick count at all picks in proportion; otherwise at the
        nearest pick of any class.

    Returns:
      Weights [m], float32, and the assignments [n].

    Example:
      >>> points = Points((jnp.array([[0.0], [1.0], [10.0]]),))
      >>> picks, metric = jnp.array([1, 2]), Metric("euclidean", 1.0)
      >>> form = {"metric": metric, "spread": False}
      >>> found = nearest_counts(points, jnp.zeros(3, int), take_rows(points, picks), picks, **form)
      >>> found.weights.tolist(), found.assignments.tolist()
      ([2.0, 1.0], [0, 0, 1])
    """
    count, number = labels.shape[0], heads.rows
    codes = jnp.zeros(number, labels.dtype) if picks is None else labels[picks]
    slots, values = nearest_picks(points, labels, heads, codes, metric)
    if earlier is not None:
        slots = jnp.where(earlier <= values, -1, slots)
    if picks is not None:
        slots = slots.at[picks].set(jnp.arange(number, dtype=jnp.int32))
    counted = jnp.ones(count, jnp.float32) if each is None else each
    total = jnp.sum(counted)
    if spread:
        slots = jnp.where(jnp.isin(labels, codes, method="sort"), slots, -1)
    places = jnp.where(slots >= 0, slots, number)
    found = jnp.zeros(number, jnp.float32).at[places].add(counted, mode="drop")
    return Counted(scaled_up(found, total) if spread else found, slots)


nearest_counts_compiled = jax.jit(nearest_counts, static_argnames=("metric", "spread"))


@jax.jit
def best_products(points: Points, labels: Array, heads: Points, codes: Array) -> Array:
    """Return the largest product [n] of each row with a candidate of its class, or 0.

    Args:
      points: [n] rows.
      labels: [n], int32.
      heads: [k] rows, the candidates.
      codes: [k], int32, their classes.

    Example:
      >>> points = Points((jnp.array([[1.0], [2.0], [-1.0]]),))
      >>> best_products(points, jnp.zeros(3, int), points, jnp.array([0, 1, 0])).tolist()
      [1.0, 2.0, 1.0]
    """
    count, width = points.rows, 256

    def blocked(leaf: Array, fill: int = 0) -> Array:
        more = -leaf.shape[0] % width
        wide = jnp.pad(leaf, (0, more), constant_values=fill) if fill else pad_rows(leaf, more)
        return wide.reshape(-1, width, *leaf.shape[1:])

    tiles = tuple(blocked(part) for part in heads.parts), blocked(codes, -1)

    def one(block: tuple[tuple[Array, ...], Array]) -> Array:
        rows, own = block

        def add(best: Array, tile: tuple[tuple[Array, ...], Array]) -> tuple[Array, None]:
            columns, theirs = tile
            products = [
                jnp.dot(x, y.T, precision="highest") for x, y in zip(rows, columns, strict=True)
            ]
            product = math.prod(products[1:], start=products[0])
            within = jnp.where(own[:, None] == theirs[None, :], product, 0.0)
            return jnp.maximum(best, jnp.max(within, axis=1)), None

        return jax.lax.scan(add, jnp.zeros(width, jnp.float32), tiles)[0]

    blocks = tuple(blocked(part) for part in points.parts), blocked(labels)
    return jax.lax.map(one, blocks).reshape(-1)[:count]


def weighted(
    points: Points,
    labels: Array,
    picks: Array,
    gains: Array,
    nearest: Array,
    top: Array,
    metric: Metric,
    orphans: Orphans,
    each: Array | None = None,
    floor: Array | None = None,
    earlier: Array | None = None,
    heads: Points | None = None,
) -> Coreset:
    """Count what each pick stands for.

    Args:
      points: [n] rows, or similarities [k, n] of candidates to rows.
      labels: [n], int32.
      picks: [m], int32.
      gains: [m].
      nearest: [n], int32, slot of the nearest pick, -1 where there is none.
      top: [], dissimilarity at which the similarity is 0.
      metric: static.
      orphans: static, where rows of classes without a pick count.
      each: [n], what rows count; None: one each.
      floor: [c], see ``covered_share``; None: every row may be picked.
      earlier: [n], dissimilarities to the nearest row of elsewhere; None: there are none.
      heads: [m] rows, the picks where they lie elsewhere; None: they are rows of the pool.
    """
    mass = float(len(labels)) if each is None else jnp.sum(each)
    objective = jnp.sum(gains)
    if earlier is not None:
        covered = jnp.maximum(top - earlier, 0.0)
        objective = objective + jnp.sum(covered if each is None else covered * each)
    if metric.signed:
        # Negative similarities improve nobody, but still say which pick is nearest.
        spread, matrix = orphans == "spread", points.parts[0]
        if metric.name == "precomputed":
            itself = matrix.shape[0] == matrix.shape[1]
            counted = coverage_counts(-matrix.T, labels, picks, each, spread=spread, itself=itself)
        else:
            own = take_rows(points, picks) if heads is None else heads
            counted = nearest_counts(
                points, labels, own, picks if heads is None else None, each, earlier,
                metric=metric, spread=spread,
            )  # fmt: skip
        if floor is None:
            given = metric.name == "precomputed"
            best = (
                best_similarities(matrix, labels)
                if given
                else best_products(points, labels, points, labels)
            )
            floor = -(best if each is None else best * each)
        share = covered_share(objective, top, mass, jnp.sum(floor))
        return Coreset(picks, counted.weights, gains, objective, counted.assignments, share)
    if orphans == "nearest":
        slots, _ = nearest_picks(points, labels, take_rows(points, picks), labels[picks], metric)
        nearest = jnp.where(nearest >= 0, nearest, slots)
    slots = jnp.where(nearest >= 0, nearest, picks.shape[0])
    one = 1.0 if each is None else each
    weights = jnp.zeros(picks.shape[0], jnp.float32).at[slots].add(one, mode="drop")
    if earlier is None:
        weights = scaled_up(weights, mass)
    share = covered_share(objective, top, mass, 0.0 if floor is None else jnp.sum(floor))
    return Coreset(picks, weights, gains, objective, nearest, share)


weighted_compiled = jax.jit(weighted, static_argnames=("metric", "orphans"))
