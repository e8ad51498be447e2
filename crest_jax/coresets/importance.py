"""Weighted samples inside ``jit``: rows drawn in proportion to the lengths of their gradients.

A gradient that is estimated from a few of its terms, each divided by the chance that it was drawn, has
no bias, and the least variance where the chances are in proportion to the lengths of the terms. Of
deep networks the length of the gradient with respect to the last layer stands for that of the whole
gradient (Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018).
"""

from functools import partial

import jax
import jax.numpy as jnp

from crest_jax.types import Array, Factored, PyTree

LEVEL = 0.1  # share of the mean length that is added to every length, which bounds the weights
CERTAIN = 0.99  # largest chance, which leaves room for the rounding of running sums


def lengths_of(embeddings: PyTree) -> Array:
    """Return the Euclidean lengths [n] of embeddings, one array [n, d] or ``Factored``.

    Example:
      >>> lengths_of(Factored(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]]))).tolist()
      [10.0]
    """
    parts = tuple(embeddings) if isinstance(embeddings, Factored) else (embeddings,)
    squares = [jnp.sum(jnp.square(part.astype(jnp.float32)), axis=1) for part in parts]
    return jnp.sqrt(squares[0] if len(squares) == 1 else squares[0] * squares[1])


def inclusion_chances(masses: Array, size: int) -> Array:
    """Return chances [n] in proportion to positive masses [n] that sum to ``size``, none above a limit.

    Args:
      masses: above 0.
      size: static, below n.

    Example:
      >>> chances = inclusion_chances(jnp.array([1.0, 1.0, 2.0, 4.0]), 2)
      >>> [round(chance, 2) for chance in chances.tolist()]
      [0.25, 0.25, 0.5, 0.99]
    """
    count = masses.shape[0]
    most = max(CERTAIN, (size / count + 1) / 2)
    falling = -jnp.sort(-masses)
    rest = jnp.flip(jnp.cumsum(jnp.flip(falling)))  # of each mass and all below it
    scales = (size - most * jnp.arange(count, dtype=jnp.float32)) / rest
    fits = scales * falling <= most  # where the masses above have the largest chance
    return jnp.minimum(most, masses * scales[jnp.argmax(fits)])


@partial(jax.jit, static_argnames="size")
def importance_sample(
    key: Array,
    embeddings: PyTree,
    labels: Array,
    *,
    size: int,
    sample_weights: Array | None = None,
) -> tuple[Array, Array]:
    """Draw rows in proportion to the lengths of their embeddings; no row comes twice.

    The sum of the picks' gradients, each times its weight, is the sum of all rows' gradients in
    expectation. Rows are drawn systematically (Madow, 1949) along their order by label and length, so
    that every class, and every length, has the share of the picks that belongs to it.

    Args:
      key: PRNG key.
      embeddings: [n, d], or ``Factored``.
      labels: [n], integers.
      size: static, m, at most n.
      sample_weights: [n], float32, how many examples each row stands for; None: one each.

    Returns:
      Positions [m], int32, and weights [m], float32, in expectation of sum n.

    Example:
      >>> rows, labels = jnp.array([[1.0], [1.0], [1.0], [9.0]]), jnp.zeros(4, int)
      >>> found, weights = importance_sample(jax.random.key(0), rows, labels, size=2)
      >>> found.tolist(), [round(weight, 2) for weight in weights.tolist()]
      ([2, 3], [2.97, 1.01])
    """
    count = labels.shape[0]
    each = jnp.ones(count, jnp.float32) if sample_weights is None else sample_weights
    if size == count:
        return jnp.arange(count, dtype=jnp.int32), each
    lengths = lengths_of(embeddings)
    mean = jnp.sum(each * lengths) / jnp.sum(each)
    masses = each * jnp.where(mean > 0, lengths / jnp.where(mean > 0, mean, 1.0) + LEVEL, 1.0)
    chances = inclusion_chances(masses, size)
    order = jnp.lexsort((masses, labels)).astype(jnp.int32)
    ends = jnp.cumsum(chances[order])
    marks = (jnp.arange(size, dtype=jnp.float32) + jax.random.uniform(key)) * (ends[-1] / size)
    places = jnp.sum(ends[None, :] <= marks[:, None], axis=1, dtype=jnp.int32)
    picks = order[jnp.minimum(places, count - 1)]
    return picks, each[picks] / chances[picks]
