"""Sums over columns between embeddings, of which dissimilarities are functions; exact or bounded.

They come in two forms. *Direct* ones add what two rows give column by column: as exact as float32 can
be, at the cost of ``O(d)`` vector operations. *Lower bounds* come from matrix products where that is
possible: the expansion ``|x|^2 + |y|^2 - 2 x.y``, or ``x.y`` itself, runs at their speed but cancels;
with its rounding error subtracted it is a lower bound, hence an upper bound of every gain. Absolute
differences have no such form, so that their bounds are direct sums too.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.distances import TERMS, Term, column_sums, row_norms, row_sums, sums_between
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.types import Array

_UNROLL = 64  # columns written out in one fused loop; above, a loop over groups of 16
_EPS = 1.2e-7  # spacing of float32 at 1


def centred(metric: Metric, points: Points, *others: Points) -> tuple[Points, ...]:
    """Move columns near the origin where that loses nothing, those of several sets alike.

    A column whose values lie within a factor of 2 of each other is shifted by one of them in the
    middle: such float32 numbers have an exact difference (Sterbenz). Expansions then cancel less.

    Example:
      >>> points = Points((jnp.array([[1e6], [1e6 + 1]]),))
      >>> centred(Metric("euclidean", 1.0), points)[0].parts[0].tolist()
      [[-0.5], [0.5]]
    """
    sets = (points, *others)
    if len(points.parts) > 1 or metric.form == "product":
        return sets
    low, high = (
        functools.reduce(bound, (reduce(each.parts[0], axis=0) for each in sets))
        for bound, reduce in ((jnp.minimum, jnp.min), (jnp.maximum, jnp.max))
    )
    least, most = jnp.minimum(jnp.abs(low), jnp.abs(high)), jnp.maximum(jnp.abs(low), jnp.abs(high))
    near = (low * high > 0) & (most <= 2 * least)
    shift = jnp.where(near, low + (high - low) / 2, 0.0)
    return tuple(each._replace(parts=(each.parts[0] - shift[None, :],)) for each in sets)


def without_direction(x: Array | None, y: Array | None) -> Array | float:
    """Return what rows of zeros add to a squared distance for cosines, from numbers that broadcast.

    A row of zeros has cosine 0 with every other row, so their squared distance counts as 2; with its
    length of 0 one such row contributes 1, or 0, of it.

    Example:
      >>> without_direction(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 2])).tolist()
      [0.0, 1.0, 0.0, 2.0]
    """
    if x is None or y is None:
        return 0.0
    return jnp.where(x == y, 0.0, jnp.where((x > 0) & (y > 0), 2.0, 1.0))


def to_tiles(points: Points, width: int) -> Points:
    """Lay rows out for sweeps: parts [n, d_l] become [n / width, d_l, width]."""
    parts = (part.reshape(-1, width, part.shape[1]) for part in points.parts)
    blank = None if points.blank is None else points.blank.reshape(-1, width)
    return Points(tuple(part.transpose(0, 2, 1) for part in parts), blank)


def to_all(metric: Metric, row: Points, tiles: Points) -> Array:
    """Return direct sums [t, w] from a row (parts [d_l]) to tiles (parts [t, d_l, w])."""
    a = row.parts[0]

    def norms(b: Array, c: Array) -> tuple[Array, Array]:
        return jnp.sum(jnp.square(b)), _sum_over_columns(a, c, lambda x, y: jnp.square(y))

    more = without_direction(row.blank, tiles.blank)
    return more + _direct(metric, row, tiles, _sum_over_columns, norms)


def _direct(
    metric: Metric,
    x: Points,
    y: Points,
    summed: Callable[[Array, Array, Term], Array],
    norms: Callable[[Array, Array], tuple[Array, Array]],
) -> Array:
    """Return direct sums of two sets, but for rows without a direction.

    Args:
      metric: of the points.
      x: parts (a), or (a, b).
      y: parts (c), or (c, d).
      summed: sums a term over the columns of a part of each.
      norms: returns ``|b|^2`` and ``|c|^2``, for outer products.
    """
    a, c = x.parts[0], y.parts[0]
    if len(x.parts) == 1:
        return column_sums(metric.form, lambda term: summed(a, c, term))
    b, d = x.parts[1], y.parts[1]
    return column_sums(
        metric.form,
        lambda term: summed(a, c, term),
        lambda term: summed(b, d, term),
        lambda: norms(b, c),
    )


def _sum_over_columns(row: Array, tiles: Array, term: Term) -> Array:
    """Sum ``term(x_k, y_k)`` over the columns k of a row [d] and tiles [t, d, w]; returns [t, w]."""
    count = tiles.shape[1]
    total = jnp.zeros((tiles.shape[0], tiles.shape[2]), jnp.float32)
    grouped = 0 if count <= _UNROLL else count - count % 16

    def group(index: Array, total: Array) -> Array:
        x = jax.lax.dynamic_slice_in_dim(row, index * 16, 16)
        y = jax.lax.dynamic_slice_in_dim(tiles, index * 16, 16, axis=1)
        for k in range(16):
            total = total + term(x[k], y[:, k])
        return total

    if grouped:
        total = jax.lax.fori_loop(np.int32(0), np.int32(grouped // 16), group, total)
    for k in range(grouped, count):
        total = total + term(row[k], tiles[:, k])
    return total


def pairs(metric: Metric, x: Points, y: Points) -> Array:
    """Return direct sums [t] between corresponding rows [t] of two sets."""

    def summed(x: Array, y: Array, term: Term) -> Array:
        return row_sums(term(x, y))

    def norms(b: Array, c: Array) -> tuple[Array, Array]:
        return jnp.square(row_norms(b)), jnp.square(row_norms(c))

    return without_direction(x.blank, y.blank) + _direct(metric, x, y, summed, norms)


def between(metric: Metric, x: Points, y: Points) -> Array:
    """Return direct sums [a, b] from rows [a] to rows [b], in one pass: for accelerators."""

    def norms(b: Array, c: Array) -> tuple[Array, Array]:
        return jnp.sum(jnp.square(b), axis=1)[:, None], jnp.sum(jnp.square(c), axis=1)[None]

    found = _direct(metric, x, y, sums_between, norms)
    return found + _between_blanks(x.blank, y.blank)


def _between_blanks(x: Array | None, y: Array | None) -> Array | float:
    """Return ``without_direction`` [a, b] of rows [a] and rows [b]."""
    return 0.0 if x is None or y is None else without_direction(x[:, None], y[None, :])


def lengths(metric: Metric, points: Points) -> Array:
    """Return the lengths [n] that ``lower`` takes: squared ones, or sums of absolute values."""
    if metric.form == "absolute":
        return row_sums(jnp.abs(points.parts[0]))
    found = [row_sums(jnp.square(part)) for part in points.parts]
    return math.prod(found[1:], start=found[0])


def lower(metric: Metric, x: Points, x_lengths: Array, tile: Points, y_lengths: Array) -> Array:
    """Return lower bounds [b, w] of sums, of direct ones too.

    The rounding error of the expansion of a squared distance is at most ``gamma (|x|^2 + |y|^2)``,
    that of a product ``gamma |x| |y|``, where ``gamma`` counts the roundings of lengths and products
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Section 3.1). An upper bound of a
    squared distance is ``2 gamma (|x|^2 + |y|^2)`` higher; see ``spread``.

    Args:
      metric: of the points.
      x: parts [b, d_l].
      x_lengths: [b], from ``lengths``; -inf for rows that are none: their bounds are so too (but for
        products).
      tile: parts [d_l, w].
      y_lengths: [w].
    """
    gamma = _gamma(x)
    if metric.form == "absolute":
        direct = _many_to_tile(x.parts[0], tile.parts[0], TERMS["absolute"])
        return jnp.where(x_lengths[:, None] > -jnp.inf, (1 - gamma) * direct, -jnp.inf)
    products = [
        jnp.dot(part, columns, precision="highest")
        for part, columns in zip(x.parts, tile.parts, strict=True)
    ]
    product = math.prod(products[1:], start=products[0])
    if metric.form == "product":
        return -product - gamma * jnp.sqrt(x_lengths)[:, None] * jnp.sqrt(y_lengths)[None, :]
    found = (1 - gamma) * (x_lengths[:, None] + y_lengths[None, :]) - 2 * product
    return found + _between_blanks(x.blank, tile.blank)


def _many_to_tile(rows: Array, tile: Array, term: Term) -> Array:
    """Sum a term over the columns of rows [b, d] and a tile [d, w], 16 columns at a time; [b, w]."""
    fill = -rows.shape[1] % 16  # columns of zeros, which add nothing
    left = jnp.pad(rows, ((0, 0), (0, fill))).T.reshape(-1, 16, rows.shape[0])
    right = jnp.pad(tile, ((0, fill), (0, 0))).reshape(-1, 16, tile.shape[1])

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        x, y = group
        for k in range(16):
            total = total + term(x[k][:, None], y[k][None, :])
        return total, None

    zeros = jnp.zeros((rows.shape[0], tile.shape[1]), jnp.float32)
    return jax.lax.scan(add, zeros, (left, right))[0]


def _gamma(points: Points) -> float:
    return (sum(part.shape[-1] for part in points.parts) + 4) * _EPS


def spread(points: Points, lengths: Array) -> Array:
    """Return by how much, at most, a sum of differences exceeds its lower bound, [n].

    Args:
      points: parts [n, d_l].
      lengths: [n], of the points plus those of what they are compared with, at their longest.

    Example:
      >>> bool(spread(Points((jnp.ones((1, 4)),)), jnp.array([8.0]))[0] < 1e-4)
      True
    """
    return 2 * (1 + 1e-5) * _gamma(points) * lengths
