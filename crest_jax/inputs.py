"""Embeddings as people have them: made ready for selection, or refused in one sentence."""

import math
import sys
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.embeddings import Factored
from crest_jax.metrics import ROOM, Metric, Points, dimensions, exponential_scale
from crest_jax.types import Array, Coreset

ArrayOf = np.ndarray | Array
_USUAL = (-20, 40)  # exponents of the largest entry for which squares neither vanish nor overflow
_AT_ONCE = 1 << 22  # entries moved at once


class Pool(NamedTuple):
    """Embeddings that passed all checks."""

    points: Points  # leaves [n, ...], or [p, n, ...] for p problems; NumPy or JAX arrays, float32
    metric: Metric
    exponents: np.ndarray  # [p]: dissimilarities were multiplied by two to this power
    batched: bool


def real_array(value: Any, name: str = "embeddings") -> ArrayOf:
    """Return an array of real numbers in the machine's byte order, or refuse in one sentence.

    Lists of batches [b, d] are joined to [n, d]. The type of the numbers stays.

    Args:
      value: an array, or anything that NumPy makes one of; a list of arrays [b, d].
      name: what the sentence calls it.

    Raises:
      ValueError: on sparse matrices, masked entries, complex numbers, text, dates, dictionaries,
        lists whose entries differ in shape.

    Example:
      >>> real_array([np.zeros((2, 3)), np.ones((1, 3))]).shape
      (3, 3)
    """
    if isinstance(value, jax.Array):
        kind = value.dtype
        found: ArrayOf = value
    else:
        found = _from_others(value, name)
        kind = found.dtype
    number = jnp.issubdtype(kind, jnp.floating) or kind.kind in "iub"
    _checks.require(
        number,
        f"{name} have dtype {kind} but must be real numbers; pass real and imaginary parts as columns."
        if kind.kind == "c"
        else f"{name} have dtype {kind} but must be real numbers; encode them as numbers first.",
    )
    return found


def _from_others(value: Any, name: str) -> np.ndarray:
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise ValueError(
            f"{name} are {_checks.brief(value)} but must be an array [n, d]; pass one row of numbers "
            "for each example."
        )
    if isinstance(value, (list, tuple)) and len(value) and np.ndim(_first(value)) == 2:
        pieces = [real_array(piece, name) for piece in value]
        shapes = {tuple(piece.shape[1:]) for piece in pieces}
        _checks.require(
            len(shapes) == 1 and pieces[0].ndim == 2,
            f"{name} are a {type(value).__name__} of {len(pieces)} arrays of {len(shapes)} different "
            "widths but batches must all be [b, d]; pass batches of one width, or "
            "crest_jax.Factored(left, right) for outer products.",
        )
        return np.concatenate([np.asarray(piece) for piece in pieces])
    found = _checks.host_array(value, name, "pass one row of d numbers for each example")
    if found.dtype != object:
        return found
    try:
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} are {_checks.brief(value)} but must make one array of numbers "
            f"({_checks.brief(str(error))}); pass one row of d numbers for each example."
        ) from None


def _first(value: Any) -> Any:
    first = value[0]
    return first if hasattr(first, "shape") else np.empty(_nesting(first))


def _nesting(value: Any) -> tuple[int, ...]:
    """Axes of nested lists, each counted as 0 long."""
    return (0, *_nesting(value[0])) if isinstance(value, (list, tuple)) and len(value) else ()


def rows_of(embeddings: Any, metric: str) -> Any:
    """Return embeddings as one real array, or a ``Factored`` pair of them, their values unchecked.

    What has a shape and no values (``jax.ShapeDtypeStruct``) stays as it is.

    Example:
      >>> rows_of([[1, 2], [3, 4]], "euclidean").shape
      (2, 2)
    """
    name = "similarities" if metric == "precomputed" else "embeddings"
    if isinstance(embeddings, Factored):
        return Factored(*(rows_of(part, metric) for part in embeddings))
    if isinstance(embeddings, jax.ShapeDtypeStruct):
        return embeddings
    if isinstance(embeddings, tuple) and len(embeddings) == 2 and np.ndim(_first(embeddings)) == 2:
        raise ValueError(
            "embeddings are a tuple of two arrays, which may be batches or the factors of outer "
            "products; pass crest_jax.Factored(left, right) for outer products, or "
            "np.concatenate(batches)."
        )
    return real_array(embeddings, name)


def shape_of(
    embeddings: Any, metric: str, labels_axes: int | None, batched: bool | None
) -> tuple[int, int, int, bool]:
    """Check shapes; return the number of problems, of rows and of columns, and whether it is batched.

    Args:
      embeddings: as from ``rows_of``.
      metric: see ``select_coreset``.
      labels_axes: axes of the labels, None without any.
      batched: see ``select_coreset``.
    """
    leaves = jax.tree.leaves(embeddings)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    shown = shapes[0] if len(shapes) == 1 else f"{shapes[0]} and {shapes[1]}"
    axes = {len(shape) for shape in shapes}
    rule = "one array [n, d] (or [p, n, d] for p problems), d >= 1, or a Factored pair of them"
    _checks.require(
        axes in ({2}, {3}) and all(shape[-1] > 0 for shape in shapes),
        f"embeddings have shape {shown} but must be {rule}; flatten each example's embedding to a "
        "vector, with x.reshape(len(x), -1).",
    )
    _checks.require(
        len({shape[:-1] for shape in shapes}) == 1,
        f"embeddings have shapes {shown} but all dimensions but the last must agree; pass one row per "
        "example in every part.",
    )
    found = axes == {3}
    problems, rows = shapes[0][:-1] if found else (1, shapes[0][0])
    _checks.require(
        batched is None or batched == found,
        f"batched is {batched} but embeddings have shape {shown}; batched goes with [p, n, d].",
    )
    matrix = metric == "precomputed"
    if found and batched is None and labels_axes != 2:
        # Images [n, h, w] and token vectors [n, t, d] look like many problems of few rows.
        kind = np.dtype(leaves[0].dtype).kind
        square = len(shapes) == 1 and shapes[0][-1] == rows and not matrix
        _checks.require(
            labels_axes is None and kind not in "iub" and not square and problems <= max(rows, 1),
            f"embeddings have shape {shown}, which reads as {problems} problems of {rows} examples; "
            "pass batched=True if they are (or labels [p, n]), or flatten examples with "
            "x.reshape(len(x), -1) if these are images or sequences.",
        )
    _checks.require(
        rows > 0 and problems > 0,
        f"embeddings have shape {shown} but must hold at least one example; pass an array of shape "
        "[n, d] with n >= 1.",
    )
    _checks.require(
        not matrix or (len(shapes) == 1 and shapes[0][-1] == rows),
        f'embeddings have shape {shown} but with metric="precomputed" they must be similarities '
        "[n, n]; pass a square matrix.",
    )
    return problems, rows, sum(shape[-1] for shape in shapes), found


def make_pool(embeddings: Any, metric: str, *, batched: bool) -> Pool:
    """Check the values of embeddings of a checked shape, and prepare them for a metric.

    Numbers of other types than float32 are first moved, in their own precision, so that columns far
    from the origin keep their digits. Very small or large ones are scaled by a power of two, which
    changes no pick and rounds nothing. Rows are scaled to length 1 for cosines.

    Raises:
      ValueError: on NaN or infinite values, and on similarities that are none.
    """
    parts = [_on_device(part) for part in jax.tree.leaves(embeddings)]
    largest = np.stack([largest_of(part, batched) for part in parts])  # [parts, p]
    if metric == "cosine":
        return _directions(parts, batched)
    if metric != "precomputed" and len(parts) == 1:
        parts, largest = _near_origin(parts[0], largest, batched)
    if metric == "exponential":  # the metric holds the scale, so that all problems must share it
        largest = np.broadcast_to(largest.max(axis=1, keepdims=True), largest.shape)
    exponents = _exponents(largest)
    scaled = tuple(_scaled(part, own, batched) for part, own in zip(parts, exponents, strict=True))
    total, scale = exponents.sum(axis=0), 1.0
    if metric == "exponential":
        scale = exponential_scale(dimensions(parts), 2.0 ** min(int(total[0]), 127))
        total = np.zeros_like(total)
    elif metric == "sqeuclidean":
        total = 2 * total
    elif metric == "precomputed":
        _check_similarities(scaled[0] if batched else scaled[0][None], total)
    return Pool(Points(scaled), Metric(metric, scale), total, batched)


def _on_device(part: ArrayOf) -> ArrayOf:
    small = jnp.issubdtype(part.dtype, jnp.floating) and part.dtype.itemsize <= 4
    return jnp.asarray(part) if small else np.asarray(part)


@jax.jit
def _largest_on_device(leaf: Array) -> Array:
    return jnp.max(jnp.abs(leaf.astype(jnp.float32)), axis=tuple(range(1, leaf.ndim)))


def largest_of(part: ArrayOf, batched: bool) -> np.ndarray:
    """Return the largest absolute value of each problem [p], float64.

    Args:
      part: [n, d], or [p, n, d] if ``batched``.
      batched: whether there are several problems.

    Raises:
      ValueError: when one is NaN or infinite.

    Example:
      >>> largest_of(np.array([[1, -3]]), batched=False).tolist()
      [3.0]
    """
    flat = part if batched else part[None]
    if isinstance(part, jax.Array):
        found = np.asarray(_largest_on_device(flat), np.float64)
        if not found.all():  # numbers below 1e-38 count as 0 on most devices
            found = np.abs(np.asarray(flat, np.float64)).max(axis=tuple(range(1, flat.ndim)))
    else:
        host = np.asarray(flat)
        if host.dtype.kind in "iub":
            axes = tuple(range(1, host.ndim))
            low, high = host.min(axis=axes).astype(np.float64), host.max(axis=axes).astype(np.float64)
            return np.maximum(np.abs(low), np.abs(high))
        found = np.abs(host).max(axis=tuple(range(1, host.ndim))).astype(np.float64)
    if not np.isfinite(found).all():
        _refuse_infinite(np.asarray(part), batched)
    return found


def _refuse_infinite(values: np.ndarray, batched: bool) -> None:
    values = values.reshape((-1, values.shape[-1]) if batched else (values.shape[0], -1))
    bad = np.asarray(~np.isfinite(values.astype(np.float64)).all(axis=1))
    if not bad.any():  # finite as they are, but not in float64
        raise ValueError(
            "embeddings reach beyond the largest float64 but must fit it; divide them all by one "
            "number, which changes no pick."
        )
    raise ValueError(
        f"embeddings of {int(bad.sum())} of {len(bad)} examples are NaN or infinite (the first is row "
        f"{int(bad.argmax())}) but must be finite; check the model's loss or drop these rows."
    )


def _exponents(largest: np.ndarray) -> np.ndarray:
    """Return by which powers of two parts are multiplied, from their largest entries [parts, p].

    0 where squares, and products of parts, fit float32 well.
    """
    own, parts = np.frexp(largest)[1], len(largest)
    usual = (largest == 0) | ((own >= _USUAL[0] // parts) & (own <= _USUAL[1] // parts))
    return np.where(usual, 0, ROOM // parts - own)


def _scaled(part: ArrayOf, exponents: np.ndarray, batched: bool) -> Array:
    if not exponents.any():
        return part.astype(jnp.float32) if isinstance(part, jax.Array) else _float32(part)
    host = _float64(part)
    return _float32(np.ldexp(host, exponents[:, None, None] if batched else exponents[0]))


def _float64(part: ArrayOf) -> np.ndarray:
    host = np.asarray(part)
    wide = host.dtype.kind == "f" and host.dtype.itemsize >= 8
    return host if wide else host.astype(np.float64)


def _float32(part: np.ndarray) -> Array:
    with np.errstate(under="ignore"):
        return jnp.asarray(part.astype(np.float32))


def _near_origin(part: ArrayOf, largest: np.ndarray, batched: bool) -> tuple[list[ArrayOf], np.ndarray]:
    """Move columns that lie farther from the origin than they are wide, before digits are lost."""
    if _fits_float32(part, float(largest.max())):
        return [part], largest
    host = np.asarray(part)
    shift = _far_middle(host)
    if not shift.any():
        return [part], largest
    moved = _moved(host, shift)
    return [moved], largest_of(moved, batched)[None]


def _fits_float32(part: ArrayOf, largest: float) -> bool:
    kind = np.dtype(part.dtype)
    return (jnp.issubdtype(kind, jnp.floating) and kind.itemsize <= 4) or (
        kind.kind in "iub" and largest <= 2**24
    )


def _far_middle(host: np.ndarray) -> np.ndarray:
    """Return the middle of each column [..., 1, d] that lies far from the origin, 0 for the others."""
    low, high = (np.asarray(reduce(host, axis=-2, keepdims=True)) for reduce in (np.min, np.max))
    wide = np.longdouble if host.dtype.itemsize >= 8 else np.float64
    low, high = low.astype(wide), high.astype(wide)
    middle, width = low + (high - low) / 2, high - low
    far = (np.minimum(np.abs(low), np.abs(high)) > width) & ((low > 0) == (high > 0))
    # Whole, so that whole numbers are moved without rounding.
    return np.where(far, np.round(middle) if host.dtype.kind in "iu" else middle, 0)


def _moved(host: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return rows minus a shift in float64."""
    if host.dtype.kind == "f" and host.dtype.itemsize <= 8:
        return host - shift.astype(np.float64)
    moved = np.empty(host.shape, np.float64)
    step = max(1, _AT_ONCE // max(1, host[..., :1, :].size))
    for first in range(0, host.shape[-2], step):
        rows = (..., slice(first, first + step), slice(None))
        moved[rows] = host[rows].astype(np.longdouble) - shift
    return moved


def _unit_rows(part: ArrayOf) -> tuple[np.ndarray, np.ndarray]:
    """Scale rows [..., d] to length 1 in float64; also return which of them are zero."""
    host = _float64(part)
    sizes = np.abs(host).max(axis=-1, keepdims=True)
    unit = np.ldexp(host, -np.frexp(sizes)[1]).astype(np.float64)
    lengths = np.sqrt(np.einsum("...d,...d->...", unit, unit))[..., None]
    return unit / np.where(sizes == 0, 1, lengths), sizes[..., 0] == 0


def _directions(parts: list[ArrayOf], batched: bool) -> Pool:
    """Scale rows to length 1, and move columns near the origin; no angle changes."""
    problems = parts[0].shape[0] if batched else 1
    units, zeros = zip(*(_unit_rows(part) for part in parts), strict=True)
    if len(parts) == 1:
        units = (_moved(units[0], _far_middle(units[0])),)
    blank, numbers = np.any(zeros, axis=0), None
    if blank.any():
        numbers = jnp.asarray(np.where(blank, np.arange(1, blank.shape[-1] + 1), 0), jnp.int32)
    points = Points(tuple(_float32(unit) for unit in units), numbers)
    return Pool(points, Metric("cosine", 1.0), np.zeros(problems, int), batched)


class Frame:
    """The shift and the scale that all rows of a stream share; its first rows decide.

    Example:
      >>> frame = Frame("euclidean")
      >>> frame.points(np.array([[1e9], [1e9 + 1]]), 0).parts[0].tolist()
      [[-0.5], [0.5]]
    """

    def __init__(self, metric: str) -> None:
        """Begin with no rows."""
        self._name = metric
        self._shift: np.ndarray | None = None  # [1, d]
        self._exponent: int | None = None
        self._columns = 1

    @property
    def metric(self) -> Metric:
        """The metric of the points."""
        if self._name != "exponential":
            return Metric(self._name, 1.0)
        factor = 2.0 ** min(self._exponent or 0, 127)
        return Metric(self._name, exponential_scale(self._columns, factor))

    @property
    def _power(self) -> int:
        """How often the scale multiplies a dissimilarity."""
        return {"euclidean": 1, "sqeuclidean": 2}.get(self._name, 0)

    def pool(self) -> Pool:
        """Return a pool without points, for ``restored``."""
        return Pool(Points(()), self.metric, np.array([self._power * (self._exponent or 0)]), False)

    def points(self, rows: np.ndarray, first: int) -> Points:
        """Return rows [b, d], of which ``first`` came before, as points (NumPy arrays).

        Raises:
          ValueError: on NaN or infinite values, and on rows far longer than the first ones.
        """
        rows, self._columns = np.asarray(rows), rows.shape[1]
        given, largest, numbers = rows, float(largest_of(rows, batched=False)[0]), None
        if self._name == "cosine":
            rows, zeros = _unit_rows(rows)
            numbers = np.where(zeros, first + 1 + np.arange(len(rows)), 0).astype(np.int32)
        if self._shift is None:
            plain = self._name != "cosine" and _fits_float32(rows, largest)
            self._shift = np.zeros((1, rows.shape[1])) if plain else _far_middle(rows)
        if self._shift.any():
            rows = _moved(rows, self._shift)
        if rows is not given:
            largest = float(largest_of(rows, batched=False)[0])
        return Points((self._scaled(rows, largest, f"the rows after {first} others"),), numbers)

    def _scaled(self, rows: np.ndarray, largest: float, what: str) -> np.ndarray:
        if self._exponent is None and largest > 0:
            fixed = self._name == "cosine"
            self._exponent = 0 if fixed else int(_exponents(np.array([[largest]]))[0, 0])
        _checks.require(
            np.frexp(largest)[1] + (self._exponent or 0) <= 2 * ROOM,
            f"{what} reach {largest:g} but the first ones are smaller by a factor of 2^{ROOM}, so "
            "that float32 cannot hold both; give larger rows first, or divide the outliers.",
        )
        if not self._exponent:
            return rows.astype(np.float32)
        return np.ldexp(_float64(rows), self._exponent).astype(np.float32)

    def facts(self) -> np.ndarray:
        """Return shift and exponent [d + 1] for other processes; NaN is an exponent not known yet."""
        assert self._shift is not None
        exponent = math.nan if self._exponent is None else self._exponent
        return np.append(self._shift[0].astype(np.float64), exponent)

    def common(self, facts: np.ndarray) -> "Frame":
        """Return the frame that all processes take, from the facts [p, d + 1] of each."""
        known = np.flatnonzero(~np.isnan(facts[:, -1]))
        chosen = facts[known[0] if len(known) else 0]
        frame = Frame(self._name)
        frame._shift, frame._columns = chosen[None, :-1], self._columns
        frame._exponent = None if np.isnan(chosen[-1]) else int(chosen[-1])
        return frame

    def moved(self, points: Points, frame: "Frame", first: int) -> Points:
        """Return points of this frame in another one, ``first`` rows later.

        Raises:
          ValueError: when they do not fit there.
        """
        assert self._shift is not None
        assert frame._shift is not None
        blank = points.blank
        if blank is not None:
            blank = np.where(blank > 0, blank + first, 0).astype(np.int32)
        (rows,) = points.parts
        if self._exponent != frame._exponent or (self._shift != frame._shift).any():
            wide = np.ldexp(rows.astype(np.float64), -(self._exponent or 0))
            wide = wide + (self._shift - frame._shift)
            largest = float(largest_of(wide, batched=False)[0])
            rows = frame._scaled(wide, largest, "the rows of a process")
        return Points((rows,), blank)

    def moved_value(self, value: float, frame: "Frame") -> float:
        """Return a dissimilarity of this frame in another one."""
        return float(np.ldexp(value, self._power * ((frame._exponent or 0) - (self._exponent or 0))))


@jax.jit
def _look_at(matrix: Array) -> tuple[Array, Array, Array, Array]:
    """Asymmetry, least and largest entry, and whether the diagonal is the least of its rows."""
    own = jnp.diagonal(matrix)[:, None]
    above = jnp.sum(matrix > own, dtype=jnp.float32)
    least = jnp.all(matrix >= own) & (2 * above >= matrix.shape[0] * (matrix.shape[0] - 1))
    return jnp.max(jnp.abs(matrix - matrix.T)), jnp.min(matrix), jnp.max(matrix), least


def _check_similarities(matrices: Array, exponents: np.ndarray) -> None:
    """Refuse matrices [p, n, n] that are no similarities, and warn of what looks like distances."""
    for matrix, exponent in zip(matrices, exponents, strict=True):
        gap, lowest, highest, least = _look_at(matrix)
        gap, lowest, highest = (np.ldexp(float(x), -int(exponent)) for x in (gap, lowest, highest))
        _checks.require(
            gap == 0.0,
            f"similarities differ from their transpose by up to {gap:g} but must be symmetric, for "
            "rows are read as columns; pass (s + s.T) / 2.",
        )
        _checks.require(
            highest > 0 or lowest == 0,
            f"similarities lie between {lowest:g} and {highest:g} but one must be positive, for an "
            "example counts 0 until it is similar to a pick; pass s - s.min(), which turns negated "
            "distances into similarities.",
        )
        if least and len(matrix) > 1:
            warnings.warn(
                "every similarity on the diagonal is the least of its row, as in a matrix of "
                "distances; if these are distances pass d.max() - d, or the embeddings themselves.",
                stacklevel=_outside(),
            )


def _outside() -> int:
    """Return the stack level, for a warning, of the first caller outside this package."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def restored(coreset: Coreset, pool: Pool) -> Coreset:
    """Return a coreset of scaled rows with gains and objective in the units of the embeddings.

    Raises:
      ValueError: when they do not fit float32.
    """
    if not pool.exponents.any():
        return coreset
    back = -pool.exponents if pool.batched else -pool.exponents[0]
    objective = np.asarray(coreset.objective, np.float64)
    gains = np.ldexp(np.asarray(coreset.gains, np.float64), back[:, None] if pool.batched else back)
    found = np.ldexp(objective, back)
    limits = np.finfo(np.float32)
    _checks.require(
        bool(((found <= limits.max) & ((found >= limits.tiny) | (objective == 0))).all()),
        f"the objective is {np.max(found):g}, which float32 cannot hold; multiply all embeddings by "
        "one number that brings them near 1, which changes no pick.",
    )
    return coreset._replace(gains=_float32(gains), objective=_float32(found))
