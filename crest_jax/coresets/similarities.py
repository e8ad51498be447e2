"""Checks of similarities that are given."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.numbers import outside
from crest_jax.types import Array


@jax.jit
def _look_at(matrix: Array) -> tuple[Array, Array, Array, Array]:
    """Asymmetry, least and largest entry, and whether the diagonal is the least of its rows."""
    own = jnp.diagonal(matrix)[:, None]
    above = jnp.sum(matrix > own, dtype=jnp.float32)
    least = jnp.all(matrix >= own) & (2 * above >= matrix.shape[0] * (matrix.shape[0] - 1))
    return jnp.max(jnp.abs(matrix - matrix.T)), jnp.min(matrix), jnp.max(matrix), least


@jax.jit
def _extremes(matrix: Array) -> tuple[Array, Array]:
    return jnp.min(matrix), jnp.max(matrix)


def require_positive(lowest: float, highest: float) -> None:
    """Refuse similarities of which none is positive.

    Example:
      >>> require_positive(-1.0, 2.0)
    """
    _checks.require(
        highest > 0 or lowest == 0,
        f"similarities lie between {lowest:g} and {highest:g} but one must be positive, for an "
        "example counts 0 until it is similar to a pick; pass s - s.min(), which turns negated "
        "distances into similarities.",
    )


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse matrix or array of SciPy, whatever its format.

    Example:
      >>> is_sparse(np.eye(2))
      False
    """
    return hasattr(value, "toarray") and hasattr(value, "tocsc")


def check_sparse(matrix: Any) -> None:
    """Refuse sparse matrices of a wrong shape or kind, without looking at their values."""
    shape = tuple(matrix.shape)
    _checks.require(
        len(shape) == 2 and min(shape) > 0,
        f"similarities are a sparse array of shape {shape} but must be [n, n] or [n, m] with at least "
        "one row and column; pass a matrix.",
    )
    _checks.require(
        np.dtype(matrix.dtype).kind in "fiub",
        f"similarities have dtype {matrix.dtype} but must be real numbers; pass their real part or "
        "their absolute value.",
    )


def check_square(shape: tuple[int, ...], labels: Any) -> None:
    """Refuse labels where the columns are not the rows."""
    _checks.require(
        labels is None or shape[-2] == shape[-1],
        f"labels are given but similarities have shape {shape}, whose columns are not its rows and "
        "have no classes; leave labels out, or pass a square matrix.",
    )


def check_similarities(matrices: Array, exponents: np.ndarray) -> bool:
    """Refuse matrices [p, n, m] that are no similarities, and warn of what looks like distances.

    Returns:
      Whether all are symmetric, so that their rows can be read as columns.
    """
    symmetric = True
    for matrix, exponent in zip(matrices, exponents, strict=True):
        square = matrix.shape[0] == matrix.shape[1]
        gap, lowest, highest, least = _look_at(matrix) if square else (1, *_extremes(matrix), False)
        symmetric = symmetric and float(gap) == 0
        require_positive(*(float(np.ldexp(float(x), -int(exponent))) for x in (lowest, highest)))
        if least and len(matrix) > 1:
            warnings.warn(
                "every similarity on the diagonal is the least of its row, as in a matrix of "
                "distances; if these are distances pass d.max() - d, or the embeddings themselves.",
                stacklevel=outside(),
            )
    return symmetric
