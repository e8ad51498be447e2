"""Sums over the columns of pairs of embeddings, from differences: as exact as float32 can be."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crest_jax.types import Array, Factored, PyTree

_UNROLL = 16  # columns written out in one fused pass; of more, XLA makes many kernels
Term = Callable[[Array, Array], Array]
TERMS: dict[str, Term] = {
    "squared": lambda x, y: jnp.square(x - y),
    "absolute": lambda x, y: jnp.abs(x - y),
    "product": lambda x, y: -(x * y),
}


def column_sums(
    form: str,
    left: Callable[[Term], Array],
    right: Callable[[Term], Array] | None = None,
    norms: Callable[[], tuple[Array, Array]] | None = None,
) -> Array:
    """Sum what a metric asks for over the columns of pairs (x, y) of embeddings, or of outer products.

    For outer products ``|a b^T - c d^T|^2 = |a - c|^2 |b|^2 + |c|^2 |b - d|^2 +
    2 ((a - c) . c) (b . (b - d))`` and ``<a b^T, c d^T> = (a . c) (b . d)``, so that none is formed.

    Args:
      form: of the metric: "squared" or "absolute" differences, or the (negative) "product".
      left: sums a term over the columns of the only, or the left parts (a, c).
      right: the same of the right parts (b, d); None: there are none.
      norms: returns ``|b|^2`` and ``|c|^2``.

    Example:
      >>> x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
      >>> [float(column_sums(form, lambda term: jnp.sum(term(x, y)))) for form in TERMS]
      [13.0, 5.0, -13.0]
    """
    if right is None or norms is None:
        return left(TERMS[form])
    if form == "product":
        return -(left(TERMS[form]) * right(TERMS[form]))
    left_gap, right_gap = left(TERMS[form]), right(TERMS[form])
    left_cross, right_cross = left(lambda x, y: (x - y) * y), right(lambda x, y: x * (x - y))
    norm_b, norm_c = norms()
    total = left_gap * norm_b + norm_c * right_gap + 2 * left_cross * right_cross
    return jnp.maximum(total, 0.0)


def sums_of_all(embeddings: PyTree, form: str) -> Array:
    """Return the sums over columns [n, n] of all pairs of embeddings; see ``column_sums``.

    Differences are taken before squaring: the expansion ``x^2 + y^2 - 2 x y`` cancels in float32.

    Args:
      embeddings: [n, d], or ``Factored`` with left [n, c] and right [n, d].
      form: "squared", "absolute" or "product".

    Example:
      >>> sums_of_all(jnp.array([[0.0, 0.0], [3.0, 4.0]]), "squared").tolist()
      [[0.0, 25.0], [25.0, 0.0]]
    """
    if not isinstance(embeddings, Factored):
        values = embeddings.astype(jnp.float32)
        return column_sums(form, lambda term: _over_columns(values, term))
    left, right = (x.astype(jnp.float32) for x in embeddings)
    return column_sums(
        form,
        lambda term: _over_columns(left, term),
        lambda term: _over_columns(right, term),
        lambda: (jnp.sum(jnp.square(right), axis=1)[:, None], jnp.sum(jnp.square(left), axis=1)[None]),
    )


def _over_columns(values: Array, term: Term) -> Array:
    """Sum ``term(x_i, x_j)`` over the columns x of values [n, d]."""

    def one_by_one(values: Array) -> Array:
        def add(total: Array, column: Array) -> tuple[Array, None]:
            return total + term(column[:, None], column[None, :]), None

        zeros = jnp.zeros((values.shape[0], values.shape[0]), jnp.float32)
        return jax.lax.scan(add, zeros, values.T)[0]

    # A turn of a loop costs a GPU a kernel or two; on a CPU all at once takes several times as long.
    at_once = lambda values: sums_between(values, values, term)  # noqa: E731
    return jax.lax.platform_dependent(values, cpu=one_by_one, default=at_once)


def sums_between(x: Array, y: Array, term: Term) -> Array:
    """Sum ``term(x_k, y_k)`` over the columns k of rows [a, d] and rows [b, d], in one pass; [a, b].

    Example:
      >>> sums_between(jnp.array([[1.0]]), jnp.array([[3.0], [4.0]]), TERMS["squared"]).tolist()
      [[4.0, 9.0]]
    """
    if x.shape[1] > _UNROLL:
        return jnp.sum(term(x[:, None, :], y[None, :, :]), axis=2)
    total = jnp.zeros((x.shape[0], y.shape[0]), jnp.float32)
    for k in range(x.shape[1]):  # written out: a thread of a GPU has a pair, and none waits for another
        total = total + term(x[:, k, None], y[None, :, k])
    return total


def row_sums(values: Array) -> Array:
    """Sum the rows [n, d] of an array.

    A product with ones: XLA's fused row reductions are several times slower on a CPU.

    Example:
      >>> row_sums(jnp.ones((2, 3))).tolist()
      [3.0, 3.0]
    """
    return jnp.dot(values, jnp.ones(values.shape[-1], values.dtype), precision="highest")


def row_norms(part: Array) -> Array:
    """Return the lengths [n] of rows [n, d].

    Example:
      >>> row_norms(jnp.array([[3.0, 4.0]])).tolist()
      [5.0]
    """
    return jnp.sqrt(row_sums(jnp.square(part)))
