"""Embeddings as people have them: made ready for selection, or refused in one sentence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.metrics import (
    Metric,
    Points,
    bounded_share,
    check_form,
    dimensions,
    exponential_scale,
    rbf_scale,
)
from crest_jax.coresets.numbers import (
    ArrayOf,
    _first,
    exponents_of,
    far_middle,
    fits_float32,
    float32,
    float64,
    largest_of,
    less_their_mean,
    moved_by,
    real_array,
    unit_rows,
)
from crest_jax.coresets.similarities import check_similarities, check_sparse, is_sparse
from crest_jax.types import Array, Coreset, Factored


class Pool(NamedTuple):
    """Embeddings that passed all checks.

    Attributes:
      points: leaves [n, ...], or [p, n, ...] for p problems; NumPy or JAX arrays, float32.
      metric: what dissimilarities are measured by.
      exponents: [p]: dissimilarities were multiplied by two to this power.
      batched: whether the points are of several problems.
      share: what differences of dissimilarities near 0 are of those computed; see ``bounded_share``.
    """

    points: Points
    metric: Metric
    exponents: np.ndarray
    batched: bool
    share: float = 1.0


def rows_of(embeddings: Any, metric: str) -> Any:
    """Return embeddings as one real array, or a ``Factored`` pair of them, their values unchecked.

    What has a shape and no values (``jax.ShapeDtypeStruct``) stays as it is, as do sparse similarities.

    Example:
      >>> rows_of([[1, 2], [3, 4]], "euclidean").shape
      (2, 2)
    """
    name = "similarities" if metric == "precomputed" else "embeddings"
    if isinstance(embeddings, Factored):
        check_form(embeddings, metric)
        return Factored(*(rows_of(part, metric) for part in embeddings))
    if isinstance(embeddings, jax.ShapeDtypeStruct):
        return embeddings
    if metric == "precomputed" and is_sparse(embeddings):
        check_sparse(embeddings)
        return embeddings
    _checks.require(
        not is_sparse(embeddings),
        f"embeddings are a sparse matrix ({type(embeddings).__name__}) but must be dense; pass "
        '.toarray(), or metric="precomputed" if its entries are similarities, or reduce the columns '
        "first (sklearn.decomposition.TruncatedSVD).",
    )
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
        not matrix or len(shapes) == 1,
        f'embeddings have shapes {shown} but with metric="precomputed" they must be similarities '
        "[n, n] or [n, m]; pass one matrix.",
    )
    return problems, rows, sum(shape[-1] for shape in shapes), found


def make_pool(embeddings: Any, metric: str, *, batched: bool, gamma: float | None = None) -> Pool:
    """Check the values of embeddings of a checked shape, and prepare them for a metric.

    Numbers of other types than float32 are first moved, in their own precision, so that columns far
    from the origin keep their digits. Very small or large ones are scaled by a power of two, which
    changes no pick and rounds nothing. Rows are scaled to length 1 for cosines. Of similarities [n, m]
    that are not symmetric the rows of the points are the candidates, [m, n].

    Raises:
      ValueError: on NaN or infinite values, and on similarities that are none.
    """
    parts = [on_device(part) for part in jax.tree.leaves(embeddings)]
    largest = np.stack([largest_of(part, batched) for part in parts])  # [parts, p]
    if metric == "correlation":
        return directions([less_their_mean(part) for part in parts], batched)
    if metric == "cosine":
        return directions(parts, batched)
    if metric not in ("precomputed", "dot") and len(parts) == 1:
        parts, largest = near_origin(parts[0], largest, batched)
    if metric in ("exponential", "rbf"):  # the metric holds the scale, which all problems must share
        largest = np.broadcast_to(largest.max(axis=1, keepdims=True), largest.shape)
    exponents = exponents_of(largest)
    scaled = tuple(scaled_by(part, own, batched) for part, own in zip(parts, exponents, strict=True))
    total, scale, symmetric, share = exponents.sum(axis=0), 1.0, True, 1.0
    if metric in ("exponential", "rbf"):
        factor, width = 2.0 ** min(int(total[0]), 127), dimensions(parts)
        scale = exponential_scale(width, factor) if metric == "exponential" else 1.0
        scale = rbf_scale(gamma, width, factor) if metric == "rbf" else scale
        share = bounded_share(Metric(metric, scale), gamma, width, total[0])
        total = np.zeros_like(total)
    elif metric in ("sqeuclidean", "dot"):
        total = 2 * total
    elif metric == "precomputed":
        symmetric = check_similarities(scaled[0] if batched else scaled[0][None], total)
        scaled = scaled if symmetric else (jnp.swapaxes(scaled[0], -1, -2),)
    return Pool(Points(scaled), Metric(metric, scale, symmetric), total, batched, share)


def restored(coreset: Coreset, pool: Pool) -> Coreset:
    """Return a coreset of scaled rows with gains and objective in the units of the embeddings.

    Raises:
      ValueError: when they do not fit float32.
    """
    if not pool.exponents.any() and pool.share == 1:
        return coreset
    back = -pool.exponents if pool.batched else -pool.exponents[0]
    gains, objective = (np.asarray(x, np.float64) for x in (coreset.gains, coreset.objective))
    # Once a class has a pick, gains are sums of such differences.
    gains = np.where(gains < 2.0**-40 * objective[..., None], pool.share * gains, gains)
    gains = np.ldexp(gains, back[:, None] if pool.batched else back)
    found = np.ldexp(objective, back)
    limits = np.finfo(np.float32)
    _checks.require(
        bool(((found <= limits.max) & ((found >= limits.tiny) | (objective == 0))).all()),
        f"the objective is {np.max(found):g}, which float32 cannot hold; multiply all embeddings by "
        "one number that brings them near 1, which changes no pick.",
    )
    return coreset._replace(gains=float32(gains), objective=float32(found))


def on_device(part: ArrayOf) -> ArrayOf:
    """Return floats of at most 32 bits on the device, all else on the host; the type stays."""
    small = jnp.issubdtype(part.dtype, jnp.floating) and part.dtype.itemsize <= 4
    return jnp.asarray(part) if small else np.asarray(part)


def directions(parts: list[ArrayOf], batched: bool) -> Pool:
    """Scale rows to length 1, and move columns near the origin; no angle changes."""
    problems = parts[0].shape[0] if batched else 1
    units, zeros = zip(*(unit_rows(part) for part in parts), strict=True)
    if len(parts) == 1:
        units = (moved_by(units[0], far_middle(units[0])),)
    blank, numbers = np.any(zeros, axis=0), None
    if blank.any():
        numbers = jnp.asarray(np.where(blank, np.arange(1, blank.shape[-1] + 1), 0), jnp.int32)
    points = Points(tuple(float32(unit) for unit in units), numbers)
    return Pool(points, Metric("cosine", 1.0), np.zeros(problems, int), batched)


def scaled_by(part: ArrayOf, exponents: np.ndarray, batched: bool) -> Array:
    """Return a part multiplied by two to the power of the exponents, in float32."""
    if not exponents.any():
        return part.astype(jnp.float32) if isinstance(part, jax.Array) else float32(part)
    host = float64(part)
    return float32(np.ldexp(host, exponents[:, None, None] if batched else exponents[0]))


def near_origin(part: ArrayOf, largest: np.ndarray, batched: bool) -> tuple[list[ArrayOf], np.ndarray]:
    """Move columns that lie farther from the origin than they are wide, before digits are lost."""
    if fits_float32(part, float(largest.max())):
        return [part], largest
    host = np.asarray(part)
    shift = far_middle(host)
    if not shift.any():
        return [part], largest
    moved = moved_by(host, shift)
    return [moved], largest_of(moved, batched)[None]
