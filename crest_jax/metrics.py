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

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax.embeddings import factored_squared
from crest_jax.types import Array, PyTree

METRICS = ("euclidean", "sqeuclidean", "cosine", "exponential", "precomputed")
_UNROLL = 64  # columns written out in one fused loop; above, a loop over groups of 16
_EPS = 1.2e-7  # spacing of float32 at 1
_SERIES = [(-1.0) ** k / math.factorial(k + 1) for k in range(8)]  # of (1 - exp(-y)) / y


class Points(NamedTuple):
    """Rows prepared for one metric: every part [n, d_l]; a second part multiplies the first."""

    parts: tuple[Array, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.parts[0].shape[0]


class Metric(NamedTuple):
    """A dissimilarity as a monotone function of the squared distance."""

    name: str
    scale: float  # of "exponential": the number of dimensions d

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


def make_metric(name: str, embeddings: PyTree) -> Metric:
    """Return a metric for embeddings [n, d] or ``Factored``.

    Example:
      >>> float(make_metric("cosine", jnp.ones((2, 3))).from_squared(jnp.array(4.0)))
      2.0
    """
    return Metric(name, float(math.prod(leaf.shape[-1] for leaf in jax.tree.leaves(embeddings))))


def as_float32(embeddings: PyTree, name: str) -> Points:
    """Cast embeddings [n, d] or ``Factored`` to float32, and scale them to length 1 for cosines."""
    parts = tuple(leaf.astype(jnp.float32) for leaf in jax.tree.leaves(embeddings))
    if name == "cosine":
        parts = tuple(part / jnp.maximum(_norms(part), 1e-30)[:, None] for part in parts)
    return Points(parts)


def make_points(embeddings: PyTree, name: str) -> Points:
    """Do the same, and move columns near the origin where that loses nothing.

    A column whose values lie within a factor of 2 of each other is shifted by one of them in the
    middle: such float32 numbers have an exact difference (Sterbenz). Expansions then cancel less.

    Example:
      >>> make_points(jnp.array([[1e6], [1e6 + 1]]), "euclidean").parts[0].tolist()
      [[-0.5], [0.5]]
    """
    points = as_float32(embeddings, name)
    if len(points.parts) > 1:
        return points
    values = points.parts[0]
    low, high = jnp.min(values, axis=0), jnp.max(values, axis=0)
    least, most = jnp.minimum(jnp.abs(low), jnp.abs(high)), jnp.maximum(jnp.abs(low), jnp.abs(high))
    near = (low * high > 0) & (most <= 2 * least)
    shift = jnp.where(near, low + (high - low) / 2, 0.0)
    return Points((values - shift[None, :],))


def _norms(part: Array) -> Array:
    return jnp.sqrt(_row_sums(jnp.square(part)))


def _row_sums(values: Array) -> Array:
    # A product with ones: XLA's fused row reductions are several times slower on a CPU.
    return jnp.dot(values, jnp.ones(values.shape[-1], values.dtype), precision="highest")


def to_tiles(points: Points, width: int) -> Points:
    """Lay rows out for sweeps: parts [n, d_l] become [n / width, d_l, width]."""
    parts = (part.reshape(-1, width, part.shape[1]) for part in points.parts)
    return Points(tuple(part.transpose(0, 2, 1) for part in parts))


def squared_to_all(row: Points, tiles: Points) -> Array:
    """Return direct squared distances [t, w] from a row (parts [d_l]) to tiles (parts [t, d_l, w])."""
    if len(row.parts) == 1:
        return _sum_over_columns(row.parts[0], tiles.parts[0], lambda x, y: jnp.square(x - y))
    (a, b), (c, d) = row.parts, tiles.parts
    left_gap = _sum_over_columns(a, c, lambda x, y: jnp.square(x - y))
    right_gap = _sum_over_columns(b, d, lambda x, y: jnp.square(x - y))
    left_cross = _sum_over_columns(a, c, lambda x, y: (x - y) * y)
    right_cross = _sum_over_columns(b, d, lambda x, y: x * (x - y))
    norm_c = _sum_over_columns(a, c, lambda x, y: jnp.square(y))
    return factored_squared(
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
        total = jax.lax.fori_loop(0, grouped // 16, group, total)
    for k in range(grouped, count):
        total = total + term(row[k], tiles[:, k])
    return total


def squared_pairs(x: Points, y: Points) -> Array:
    """Return direct squared distances [t] between corresponding rows [t] of two sets."""
    if len(x.parts) == 1:
        return _row_sums(jnp.square(x.parts[0] - y.parts[0]))
    (a, b), (c, d) = x.parts, y.parts
    return factored_squared(
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
    2002, Section 3.1).

    Args:
      x: parts [b, d_l].
      x_lengths: [b], squared lengths of the rows.
      tile: parts [d_l, w].
      y_lengths: [w].
    """
    gamma = (sum(part.shape[1] for part in x.parts) + 4) * _EPS
    products = [
        jnp.dot(part, columns, precision="highest")
        for part, columns in zip(x.parts, tile.parts, strict=True)
    ]
    product = math.prod(products[1:], start=products[0])
    return (1 - gamma) * (x_lengths[:, None] + y_lengths[None, :]) - 2 * product


def take_rows(points: Points, rows: Array) -> Points:
    """Return the points at ``rows``."""
    return Points(tuple(part[rows] for part in points.parts))
