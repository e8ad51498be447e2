"""What facility location measures: dissimilarities between embeddings, exact or bounded from below.

Everything here is a dissimilarity ``u >= 0`` with ``u = 0`` for equal rows, and the similarity is
``top - u`` (``top`` a constant): differences of small ``u`` keep their digits in float32, where
differences of similarities near ``top`` would cancel.

* ``"euclidean"``: ``u = |x - y|``, similarity ``max(u) - u``
* ``"sqeuclidean"``: ``u = |x - y|^2``, similarity ``max(u) - u``
* ``"cosine"``: ``u = 1 - cos(x, y)``, similarity ``max(u) - u``
* ``"exponential"``: ``u = 1 - exp(-|x - y| / d)``, similarity ``exp(-|x - y| / d)``
* ``"precomputed"``: the rows are similarities already

Squared distances come in two forms. *Direct* differences are as exact as float32 can be, and cost
``O(d)`` vector operations. The *expansion* ``|x|^2 + |y|^2 - 2 x.y`` runs at the speed of a matrix
product but cancels; with its rounding error subtracted it is a lower bound, hence an upper bound of
every gain.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.distances import factored_squared
from crest_jax.types import Array, PyTree

T = TypeVar("T")
METRICS = ("euclidean", "sqeuclidean", "cosine", "exponential", "precomputed")
_UNROLL = 64  # columns written out in one fused loop; above, a loop over groups of 16
_EPS = 1.2e-7  # spacing of float32 at 1
ROOM = 30  # rows are scaled to a largest entry near 2 to this power
_SERIES = [(-1.0) ** k / math.factorial(k + 1) for k in range(8)]  # of (1 - exp(-y)) / y


class Points(NamedTuple):
    """Rows prepared for one metric; every leaf has one entry for each row.

    Attributes:
      parts: each [n, d_l], float32; a second part multiplies the first.
      blank: [n], int32: a number of its own for a row of zeros, which has no direction, and 0 for the
        others; None: there is no such row, or the metric asks for none.
    """

    parts: tuple[Any, ...]
    blank: Any = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.parts[0].shape[0]


class Metric(NamedTuple):
    """A dissimilarity as a monotone function of the squared distance.

    Attributes:
      name: one of ``METRICS``.
      scale: of "exponential": d, times the factor by which the rows were scaled.
    """

    name: str
    scale: float | Array

    def from_squared(self, squared: Array) -> Array:
        """Turn squared distances into dissimilarities."""
        if self.name == "sqeuclidean":
            return squared
        if self.name == "cosine":
            return squared / 2
        if self.name == "exponential":
            return _one_minus_exp(jnp.sqrt(squared) / self.scale)
        return jnp.sqrt(squared)

    def lower_from_squared(self, squared: Array) -> Array:
        """Turn lower bounds of squared distances into lower bounds of dissimilarities, cheaply."""
        if self.name == "exponential":
            # exp(-8 y) <= (1 - y + y^2/2 - y^3/6 + y^4/24)^8 for y >= 0: a quarter of the cost of exp.
            y = jnp.minimum(jnp.sqrt(squared) / (8 * self.scale), 1.5)
            power = 1 - y * (1 - y * (0.5 - y * (1 / 6 - y / 24)))
            for _ in range(3):
                power = power * power
            return 1 - 20 * _EPS - power
        return self.from_squared(squared)

    def to_squared(self, values: Array) -> Array:
        """Return squared distances that no row closer than ``values`` exceeds."""
        if self.name == "sqeuclidean":
            squared = values
        elif self.name == "cosine":
            squared = 2 * values
        elif self.name == "exponential":
            distances = -jnp.log1p(-jnp.minimum(values, 1 - _EPS)) * self.scale
            squared = jnp.where(values < 1 - _EPS, jnp.square(distances), jnp.inf)
        else:
            squared = jnp.square(values)
        return jnp.where(values > 0, squared * (1 + 1e-5), -1.0)

    def top(self, largest: Array) -> Array:
        """Return the dissimilarity at which the similarity is zero, given the largest one."""
        return jnp.ones_like(largest) if self.name == "exponential" else largest


def _one_minus_exp(t: Array) -> Array:
    """Return ``1 - exp(-t)`` for t >= 0, to a few roundings even near 0.

    ``p = 1 - exp(-t / 8)`` by eight terms of its series, then three times ``1 - exp(-2y) = p (2 - p)``,
    which makes relative errors smaller. XLA does not vectorise ``expm1`` on a CPU; this costs a third.
    """
    y = jnp.minimum(t, 17.0) * (1 / 8)  # exp(-17) is below the spacing of float32 at 1
    power = jnp.full_like(y, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        power = power * y + coefficient
    power = y * power
    for _ in range(3):
        power = power * (2 - power)
    return power


def dimensions(embeddings: PyTree) -> int:
    """Return the entries of one embedding [n, d], or of one outer product of ``Factored``.

    Example:
      >>> dimensions(jnp.ones((2, 3)))
      3
    """
    return math.prod(leaf.shape[-1] for leaf in jax.tree.leaves(embeddings))


def exponential_scale(count: int, factor: Any) -> Any:
    """Return the scale of the metric "exponential" for rows [n, count] that were scaled by a factor.

    Beyond 2^100 all similarities are 1 to many more digits than float32 has; their order stays.

    Example:
      >>> exponential_scale(3, 2.0)
      6.0
    """
    bound = jnp.minimum if isinstance(factor, jax.Array) else min
    return count * bound(factor, 2.0**100)


def prepare(embeddings: PyTree, name: str) -> tuple[Points, Metric, Array]:
    """Prepare embeddings inside ``jit``, where nothing is known about their size.

    They are scaled by a power of two, which rounds nothing, so that no square overflows or vanishes;
    rows are scaled to length 1 for cosines, one by one.

    Args:
      embeddings: [n, d] or ``Factored``; similarities [n, n] for "precomputed".
      name: static, the metric.

    Returns:
      The points, the metric for them, and what dissimilarities of the points are to be multiplied by
      [] to be those of the embeddings.

    Example:
      >>> points, metric, unit = prepare(jnp.array([[3e-30, 0.0], [0.0, 4e-30]]), "euclidean")
      >>> squared = squared_pairs(take_rows(points, jnp.array([0])), take_rows(points, jnp.array([1])))
      >>> f"{float(metric.from_squared(squared)[0] * unit):.3g}"
      '5e-30'
    """
    parts = tuple(leaf.astype(jnp.float32) for leaf in jax.tree.leaves(embeddings))
    if name == "precomputed":
        return Points(parts), Metric(name, 1.0), jnp.float32(1)
    if name == "cosine":
        blank = jnp.zeros(parts[0].shape[0], bool)
        for part in parts:
            blank |= ~jnp.any(part != 0, axis=1)
        parts = tuple(_directions(part) for part in parts)
        numbers = jnp.where(blank, jnp.arange(1, len(blank) + 1, dtype=jnp.int32), 0)
        return Points(parts, numbers), Metric(name, 1.0), jnp.float32(1)
    factor = jnp.float32(1)
    scaled = []
    for part in parts:
        largest = jnp.max(jnp.abs(part))
        known = (largest > 0) & (largest < jnp.inf)
        exponent = jnp.where(known, jnp.minimum(ROOM // len(parts) - _exponent(largest), 126), 0)
        scaled.append(_times_power(part, exponent))
        factor = _times_power(factor, exponent)
    if name == "exponential":
        scale = exponential_scale(dimensions(embeddings), factor)
        return Points(tuple(scaled)), Metric(name, scale), jnp.float32(1)
    unit = 1 / factor
    return Points(tuple(scaled)), Metric(name, 1.0), unit * unit if name == "sqeuclidean" else unit


def _exponent(values: Array) -> Array:
    """Return the exponents, int32, of the powers of two at or below positive normal numbers."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.clip((bits >> 23) - 127, -126, 126)


def _times_power(values: Array, exponent: Array) -> Array:
    """Multiply by powers of two, exactly."""
    bits = (exponent.astype(jnp.int32) + 127) << 23
    return values * jax.lax.bitcast_convert_type(bits, jnp.float32)


def _directions(part: Array) -> Array:
    """Scale rows to length 1; rows of zeros stay."""
    largest = jnp.max(jnp.abs(part), axis=1)
    part = _times_power(part, jnp.where(largest > 0, -_exponent(largest), 0)[:, None])
    return part / jnp.maximum(_norms(part), 1e-30)[:, None]


def centred(points: Points, *others: Points) -> tuple[Points, ...]:
    """Move columns near the origin where that loses nothing, those of several sets alike.

    A column whose values lie within a factor of 2 of each other is shifted by one of them in the
    middle: such float32 numbers have an exact difference (Sterbenz). Expansions then cancel less.

    Example:
      >>> centred(Points((jnp.array([[1e6], [1e6 + 1]]),)))[0].parts[0].tolist()
      [[-0.5], [0.5]]
    """
    sets = (points, *others)
    if len(points.parts) > 1:
        return sets
    low, high = (
        functools.reduce(bound, (reduce(each.parts[0], axis=0) for each in sets))
        for bound, reduce in ((jnp.minimum, jnp.min), (jnp.maximum, jnp.max))
    )
    least, most = jnp.minimum(jnp.abs(low), jnp.abs(high)), jnp.maximum(jnp.abs(low), jnp.abs(high))
    near = (low * high > 0) & (most <= 2 * least)
    shift = jnp.where(near, low + (high - low) / 2, 0.0)
    return tuple(each._replace(parts=(each.parts[0] - shift[None, :],)) for each in sets)


def _norms(part: Array) -> Array:
    return jnp.sqrt(_row_sums(jnp.square(part)))


def _row_sums(values: Array) -> Array:
    # A product with ones: XLA's fused row reductions are several times slower on a CPU.
    return jnp.dot(values, jnp.ones(values.shape[-1], values.dtype), precision="highest")


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


def squared_to_all(row: Points, tiles: Points) -> Array:
    """Return direct squared distances [t, w] from a row (parts [d_l]) to tiles (parts [t, d_l, w])."""
    more = without_direction(row.blank, tiles.blank)
    if len(row.parts) == 1:
        return more + _sum_over_columns(row.parts[0], tiles.parts[0], lambda x, y: jnp.square(x - y))
    (a, b), (c, d) = row.parts, tiles.parts
    left_gap = _sum_over_columns(a, c, lambda x, y: jnp.square(x - y))
    right_gap = _sum_over_columns(b, d, lambda x, y: jnp.square(x - y))
    left_cross = _sum_over_columns(a, c, lambda x, y: (x - y) * y)
    right_cross = _sum_over_columns(b, d, lambda x, y: x * (x - y))
    norm_c = _sum_over_columns(a, c, lambda x, y: jnp.square(y))
    return more + factored_squared(
        left_gap, right_gap, left_cross, right_cross, jnp.sum(jnp.square(b)), norm_c
    )


def _sum_over_columns(row: Array, tiles: Array, term: Callable[[Array, Array], Array]) -> Array:
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


def squared_pairs(x: Points, y: Points) -> Array:
    """Return direct squared distances [t] between corresponding rows [t] of two sets."""
    more = without_direction(x.blank, y.blank)
    if len(x.parts) == 1:
        return more + _row_sums(jnp.square(x.parts[0] - y.parts[0]))
    (a, b), (c, d) = x.parts, y.parts
    return more + factored_squared(
        _row_sums(jnp.square(a - c)), _row_sums(jnp.square(b - d)), _row_sums((a - c) * c),
        _row_sums(b * (b - d)), jnp.square(_norms(b)), jnp.square(_norms(c)),
    )  # fmt: skip


def squared_lengths(points: Points) -> Array:
    """Return the squared lengths [n] that ``lower_squared`` takes."""
    lengths = [_row_sums(jnp.square(part)) for part in points.parts]
    return math.prod(lengths[1:], start=lengths[0])


def lower_squared(x: Points, x_lengths: Array, tile: Points, y_lengths: Array) -> Array:
    """Return lower bounds [b, w] of squared distances, by one matrix product for each part.

    The rounding error of the expansion is at most ``gamma (|x|^2 + |y|^2)``, where ``gamma`` counts
    the roundings of lengths and products (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, Section 3.1). An upper bound is ``2 gamma (|x|^2 + |y|^2)`` higher; see ``spread``.

    Args:
      x: parts [b, d_l].
      x_lengths: [b], squared lengths of the rows.
      tile: parts [d_l, w].
      y_lengths: [w].
    """
    gamma = _gamma(x)
    products = [
        jnp.dot(part, columns, precision="highest")
        for part, columns in zip(x.parts, tile.parts, strict=True)
    ]
    product = math.prod(products[1:], start=products[0])
    lower = (1 - gamma) * (x_lengths[:, None] + y_lengths[None, :]) - 2 * product
    if x.blank is None or tile.blank is None:
        return lower
    return lower + without_direction(x.blank[:, None], tile.blank[None, :])


def _gamma(points: Points) -> float:
    return (sum(part.shape[-1] for part in points.parts) + 4) * _EPS


def spread(points: Points, lengths: Array) -> Array:
    """Return by how much, at most, a squared distance exceeds its lower bound, [n].

    Args:
      points: parts [n, d_l].
      lengths: [n], squared lengths of what the points are compared with, at their longest.

    Example:
      >>> bool(spread(Points((jnp.ones((1, 4)),)), jnp.array([8.0]))[0] < 1e-4)
      True
    """
    return 2 * (1 + 1e-5) * _gamma(points) * lengths


def pad_rows(tree: T, count: int) -> T:
    """Append rows of zeros to the leaves [n, ...] of a tree.

    Example:
      >>> pad_rows(np.ones(2), 1).tolist()
      [1.0, 1.0, 0.0]
    """

    def filled(leaf: Any) -> Array:
        return jnp.pad(jnp.asarray(leaf), ((0, count), *[(0, 0)] * (leaf.ndim - 1)))

    return cast(T, jax.tree.map(filled, tree))


def take_rows(points: Points, rows: Any) -> Points:
    """Return the points at ``rows``."""
    return jax.tree.map(lambda leaf: leaf[rows], points)
