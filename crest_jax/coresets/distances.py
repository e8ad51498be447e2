"""Squared distances between embeddings, from differences: as exact as float32 can be."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crest_jax.types import Array, Factored, PyTree


def squared_distances(embeddings: PyTree) -> Array:
    """Return all squared Euclidean distances [n, n] between embeddings.

    Differences are taken before squaring: the expansion ``x^2 + y^2 - 2 x y`` cancels in float32.
    For ``Factored`` embeddings ``|a b^T - a' b'^T|^2 = |a - a'|^2 |b|^2 + |a'|^2 |b - b'|^2 +
    2 ((a - a') . a') (b . (b - b'))``, so that no outer product is formed.

    Args:
      embeddings: [n, d], or ``Factored`` with left [n, c] and right [n, d].

    Example:
      >>> squared_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 25.0], [25.0, 0.0]]
    """
    if isinstance(embeddings, Factored):
        left, right = (x.astype(jnp.float32) for x in embeddings)
        return _factored_squared_distances(left, right)
    return _difference_sums(embeddings.astype(jnp.float32), lambda x, y: jnp.square(x - y))


def _difference_sums(values: Array, term: Callable[[Array, Array], Array]) -> Array:
    """Sum ``term(x_i, x_j)`` over the columns x of values [n, d], one column at a time."""
    n = values.shape[0]

    def add(total: Array, column: Array) -> tuple[Array, None]:
        return total + term(column[:, None], column[None, :]), None

    return jax.lax.scan(add, jnp.zeros((n, n), jnp.float32), values.T)[0]


def _factored_squared_distances(left: Array, right: Array) -> Array:
    left_gap = _difference_sums(left, lambda x, y: jnp.square(x - y))
    right_gap = _difference_sums(right, lambda x, y: jnp.square(x - y))
    left_cross = _difference_sums(left, lambda x, y: (x - y) * y)
    right_cross = _difference_sums(right, lambda x, y: x * (x - y))
    left_norm = jnp.sum(jnp.square(left), axis=1)
    right_norm = jnp.sum(jnp.square(right), axis=1)
    return factored_squared(
        left_gap, right_gap, left_cross, right_cross, right_norm[:, None], left_norm[None, :]
    )


def factored_squared(
    left_gap: Array,
    right_gap: Array,
    left_cross: Array,
    right_cross: Array,
    norm_b: Array,
    norm_c: Array,
) -> Array:
    """``|a b^T - c d^T|^2 = |a-c|^2 |b|^2 + |c|^2 |b-d|^2 + 2 ((a-c).c) (b.(b-d))``."""
    total = left_gap * norm_b + norm_c * right_gap + 2 * left_cross * right_cross
    return jnp.maximum(total, 0.0)
