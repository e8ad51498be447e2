"""What facility location measures: dissimilarities between embeddings, and how they are prepared.

Everything here is a dissimilarity ``u`` and the similarity is ``top - u`` (``top`` a constant):
differences of small ``u`` keep their digits in float32, where differences of similarities near ``top``
would cancel.

* ``"euclidean"``: ``u = |x - y|``, similarity ``max(u) - u``
* ``"sqeuclidean"``: ``u = |x - y|^2``, similarity ``max(u) - u``
* ``"manhattan"``: ``u = sum_k |x_k - y_k|``, similarity ``max(u) - u``
* ``"cosine"``: ``u = 1 - cos(x, y)``, similarity ``max(u) - u``
* ``"correlation"``: the same of rows minus their own mean: ``u = 1 - `` Pearson's correlation
* ``"exponential"``: ``u = 1 - exp(-|x - y| / d)``, similarity ``exp(-|x - y| / d)``
* ``"rbf"``: ``u = 1 - exp(-gamma |x - y|^2)``, similarity ``exp(-gamma |x - y|^2)``
* ``"dot"``: ``u = -x.y``, similarity ``x.y``
* ``"precomputed"``: the rows are similarities already

Each is a monotone function of a sum over the columns; see ``sums``.
"""

import math
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.distances import row_norms, row_sums
from crest_jax.types import Array, PyTree

T = TypeVar("T")
METRICS = (
    "euclidean", "sqeuclidean", "manhattan", "cosine", "correlation", "exponential", "rbf", "dot",
    "precomputed",
)  # fmt: skip
VECTORS_ONLY = ("manhattan", "correlation")  # no sum for outer products without forming them
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
    """A dissimilarity as a monotone function of a sum over columns.

    Attributes:
      name: one of ``METRICS``.
      scale: the unit of distances inside the exponential, times the factor by which the rows were
        scaled: d of "exponential", ``1 / sqrt(gamma)`` of "rbf".
      symmetric: of "precomputed": whether rows can be read as columns.
    """

    name: str
    scale: float | Array
    symmetric: bool = True

    @property
    def form(self) -> str:
        """What is summed over columns: "squared" or "absolute" differences, or the "product"."""
        return {"manhattan": "absolute", "dot": "product"}.get(self.name, "squared")

    @property
    def fixed_top(self) -> float | None:
        """Dissimilarity at which the similarity is zero; None where that is the largest one."""
        return {"exponential": 1.0, "rbf": 1.0, "dot": 0.0, "precomputed": 0.0}.get(self.name)

    @property
    def signed(self) -> bool:
        """Whether similarities may be negative: such ones improve nobody, yet say which is nearest."""
        return self.name in ("dot", "precomputed")

    def from_sums(self, sums: Array) -> Array:
        """Turn sums into dissimilarities."""
        if self.name in ("sqeuclidean", "manhattan", "dot"):
            return sums
        if self.name == "cosine":
            return sums / 2
        if self.name == "exponential":
            return _one_minus_exp(jnp.sqrt(sums) / self.scale)
        if self.name == "rbf":
            return _one_minus_exp(jnp.square(jnp.sqrt(sums) / self.scale))
        return jnp.sqrt(sums)

    def lower_from_sums(self, sums: Array) -> Array:
        """Turn lower bounds of sums into lower bounds of dissimilarities, cheaply."""
        if self.form == "product":
            return sums
        sums = jnp.maximum(sums, 0.0)
        if self.name in ("exponential", "rbf"):
            # exp(-8 y) <= (1 - y + y^2/2 - y^3/6 + y^4/24)^8 for y >= 0: a quarter of the cost of exp.
            if self.name == "rbf":
                eighth = jnp.square(jnp.sqrt(sums) / self.scale) / 8
            else:
                eighth = jnp.sqrt(sums) / (8 * self.scale)
            y = jnp.minimum(eighth, 1.5)
            power = 1 - y * (1 - y * (0.5 - y * (1 / 6 - y / 24)))
            for _ in range(3):
                power = power * power
            return 1 - 20 * _EPS - power
        return self.from_sums(sums)

    def to_sums(self, values: Array) -> Array:
        """Return sums that no row closer than ``values`` exceeds."""
        if self.name == "dot":
            return values
        if self.name in ("sqeuclidean", "manhattan"):
            sums = values
        elif self.name == "cosine":
            sums = 2 * values
        elif self.name in ("exponential", "rbf"):
            inside = -jnp.log1p(-jnp.minimum(values, 1 - _EPS))
            inside = (jnp.sqrt(inside) if self.name == "rbf" else inside) * self.scale
            sums = jnp.where(values < 1 - _EPS, jnp.square(inside), jnp.inf)
        else:
            sums = jnp.square(values)
        return jnp.where(values > 0, sums * (1 + 1e-5), -1.0)

    def top(self, largest: Array) -> Array:
        """Return the dissimilarity at which the similarity is zero, given the largest one."""
        return largest if self.fixed_top is None else jnp.full_like(largest, self.fixed_top)


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


def rbf_scale(gamma: float | None, count: int, factor: Any) -> Any:
    """Return the scale of the metric "rbf" for rows [n, count] that were scaled by a factor.

    Beyond 2^60 all similarities are 1 to many more digits than float32 has; their order stays.

    Args:
      gamma: None for ``1 / count``.
      count: entries of an embedding.
      factor: a power of two, a number or an array [].

    Example:
      >>> rbf_scale(0.25, 3, 2.0)
      4.0
    """
    low, high = (jnp.maximum, jnp.minimum) if isinstance(factor, jax.Array) else (max, min)
    unit = min(max(_rbf_unit(gamma, count), 2.0**-120), 2.0**120)
    return high(low(factor * unit, 2.0**-120), 2.0**60)


def _rbf_unit(gamma: float | None, count: int) -> float:
    return 1 / math.sqrt(1 / count if gamma is None else gamma)


def bounded_share(metric: Metric, gamma: float | None, count: int, exponent: int) -> float:
    """Return what tiny dissimilarities are of those computed, where the scale was bounded; else 1.

    There ``1 - exp(-t)`` is ``t`` to all digits, so true differences of them are in proportion.

    Args:
      metric: the metric of the scaled rows.
      gamma: of "rbf".
      count: entries of an embedding.
      exponent: rows were multiplied by two to this power.

    Example:
      >>> [bounded_share(Metric("rbf", rbf_scale(1.0, 1, 2.0**e)), 1.0, 1, e) for e in (50, 61)]
      [1.0, 0.25]
    """
    if metric.name not in ("exponential", "rbf"):
        return 1.0
    unit = _rbf_unit(gamma, count) if metric.name == "rbf" else count
    share = min(1.0, float(metric.scale) / (unit * 2.0 ** int(exponent)))
    return share**2 if metric.name == "rbf" else share


def check_gamma(name: str, gamma: Any) -> None:
    """Require None, or a positive number with the metric "rbf".

    Example:
      >>> check_gamma("rbf", 0.5)
    """
    if gamma is None:
        return
    _checks.require(
        name == "rbf",
        f"gamma is {_checks.brief(gamma)} but metric is {name!r}, which has none; pass metric "
        '"rbf", or leave gamma out.',
    )
    number = isinstance(gamma, (int, float, np.integer, np.floating)) and not isinstance(gamma, bool)
    _checks.require(
        number and 0 < gamma < math.inf,
        f"gamma is {_checks.brief(gamma)} but must be a positive number; 1 / d is usual.",
    )


def check_form(embeddings: PyTree, name: str) -> None:
    """Refuse outer products where the metric would need their entries one by one.

    Example:
      >>> check_form(jnp.ones((2, 3)), "manhattan")
    """
    _checks.require(
        len(jax.tree.leaves(embeddings)) == 1 or name not in VECTORS_ONLY,
        f"metric is {name!r} but embeddings are Factored, whose outer products it would have to form; "
        "pass the outer products as rows, or choose another metric.",
    )


def prepare(embeddings: PyTree, name: str, gamma: float | None = None) -> tuple[Points, Metric, Array]:
    """Prepare embeddings inside ``jit``, where nothing is known about their size.

    They are scaled by a power of two, which rounds nothing, so that no square overflows or vanishes;
    rows are scaled to length 1 for cosines, one by one.

    Args:
      embeddings: [n, d] or ``Factored``; similarities [n, n] for "precomputed".
      name: static, the metric.
      gamma: static, of "rbf"; None: 1 / d.

    Returns:
      The points, the metric for them, and what dissimilarities of the points are to be multiplied by
      [] to be those of the embeddings. For "precomputed" the rows of the points are the candidates.

    Example:
      >>> from crest_jax.coresets import sums
      >>> points, metric, unit = prepare(jnp.array([[3e-30, 0.0], [0.0, 4e-30]]), "euclidean")
      >>> one, other = (take_rows(points, jnp.array([row])) for row in (0, 1))
      >>> f"{float(metric.from_sums(sums.pairs(metric, one, other))[0] * unit):.3g}"
      '5e-30'
    """
    check_form(embeddings, name)
    parts = tuple(leaf.astype(jnp.float32) for leaf in jax.tree.leaves(embeddings))
    if name == "precomputed":
        return Points((parts[0].T,)), Metric(name, 1.0, symmetric=False), jnp.float32(1)
    if name in ("cosine", "correlation"):
        if name == "correlation":
            parts = tuple(_less_their_mean(part) for part in parts)
        blank = jnp.zeros(parts[0].shape[0], bool)
        for part in parts:
            blank |= ~jnp.any(part != 0, axis=1)
        parts = tuple(_directions(part) for part in parts)
        numbers = jnp.where(blank, jnp.arange(1, len(blank) + 1, dtype=jnp.int32), 0)
        return Points(parts, numbers), Metric("cosine", 1.0), jnp.float32(1)
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
    if name == "rbf":
        scale = rbf_scale(gamma, dimensions(embeddings), factor)
        return Points(tuple(scaled)), Metric(name, scale), jnp.float32(1)
    unit = 1 / factor
    squared = name in ("sqeuclidean", "dot")
    return Points(tuple(scaled)), Metric(name, 1.0), unit * unit if squared else unit


def _exponent(values: Array) -> Array:
    """Return the exponents, int32, of the powers of two at or below positive normal numbers."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.clip((bits >> 23) - 127, -126, 126)


def _times_power(values: Array, exponent: Array) -> Array:
    """Multiply by powers of two, exactly."""
    bits = (exponent.astype(jnp.int32) + 127) << 23
    return values * jax.lax.bitcast_convert_type(bits, jnp.float32)


def _less_their_mean(part: Array) -> Array:
    """Take the mean of each row off it, whatever its size; a constant row becomes one of zeros."""
    largest = jnp.max(jnp.abs(part), axis=1)
    part = _times_power(part, jnp.where(largest > 0, -_exponent(largest), 0)[:, None])
    part = part - part[:, :1]  # exact where entries are near each other
    return part - row_sums(part)[:, None] / part.shape[1]


def _directions(part: Array) -> Array:
    """Scale rows to length 1; rows of zeros stay."""
    largest = jnp.max(jnp.abs(part), axis=1)
    part = _times_power(part, jnp.where(largest > 0, -_exponent(largest), 0)[:, None])
    return part / jnp.maximum(row_norms(part), 1e-30)[:, None]


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
