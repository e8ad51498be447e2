"""Weighted samples inside ``jit``: rows drawn in proportion to the lengths of their gradients.

A gradient that is estimated from a few of its terms, each divided by the chance that it was drawn, has
no bias, and the least variance where the chances are in proportion to the lengths of the terms. Of
deep networks the length of the gradient with respect to the last layer stands for that of the whole
gradient (Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.types import Array, Factored, PyTree

LEVEL = 0.1  # share of the mean length that is added to every length, which bounds the weights
RIDGE = 0.01  # of calibration, on the diagonal
HELD = 0.1  # of a column's squares, that calibration asks the picks to have
LEAST = 0.1  # of a weight that calibration leaves
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


def evenness(lengths: Array) -> Array:
    """Return ``(mean length)^2 / mean length^2`` [] of lengths [n]: 1 where all are equal.

    It is Kish's effective sample size, over n. Draws in proportion to the lengths leave that share of
    the mean square of uniform draws.

    Example:
      >>> float(evenness(jnp.array([1.0, 3.0]))), float(evenness(jnp.zeros(2)))
      (0.800000011920929, 1.0)
    """
    square = jnp.mean(jnp.square(lengths))
    found = jnp.square(jnp.mean(lengths)) / jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.minimum(found, 1.0), 1.0)


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


def systematic_sample(key: Array, chances: Array, order: Array, size: int) -> Array:
    """Draw positions [m] with given chances, one for each step of one along their running sum.

    Madow, "On the theory of systematic sampling, II" (Annals of Mathematical Statistics, 1949). Any
    stretch of the order gets the number of picks that its chances sum to, within one.

    Args:
      key: PRNG key.
      chances: [n], below 1, of sum m.
      order: [n], int32, positions.
      size: static, m.

    Example:
      >>> chances = jnp.array([0.9, 0.3, 0.2, 0.6])
      >>> len(set(systematic_sample(jax.random.key(0), chances, jnp.arange(4), 2).tolist()))
      2
    """
    ends = jnp.cumsum(chances[order])
    marks = (jnp.arange(size, dtype=jnp.float32) + jax.random.uniform(key)) * (ends[-1] / size)
    places = jnp.sum(ends[None, :] <= marks[:, None], axis=1, dtype=jnp.int32)
    return order[jnp.minimum(places, chances.shape[0] - 1)]


def projections(embeddings: PyTree, number: int) -> Array:
    """Return embeddings [n, d] or ``Factored`` in random directions [n, k], each of mean square 1.

    Embeddings of fewer numbers come as they are. The directions are always the same.

    Args:
      embeddings: [n, d], or ``Factored``.
      number: static, k.

    Example:
      >>> projections(jnp.ones((4, 9)), 2).shape
      (4, 2)
    """
    parts = tuple(embeddings) if isinstance(embeddings, Factored) else (embeddings,)
    parts = tuple(part.astype(jnp.float32) for part in parts)
    if len(parts) > 1 or parts[0].shape[1] > number:
        rng = np.random.default_rng(0)
        signs = (np.float32(2 * rng.integers(0, 2, (part.shape[1], number)) - 1) for part in parts)
        parts = tuple(jnp.dot(x, y, precision="highest") for x, y in zip(parts, signs, strict=True))
    found = parts[0] if len(parts) == 1 else parts[0] * parts[1]
    square = jnp.mean(jnp.square(found), axis=0, keepdims=True)
    return found / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def calibrated(weights: Array, picks: Array, values: Array, each: Array) -> Array:
    """Change weights [m] as little as it takes for the picks' sum of values to be that of all rows.

    The calibration estimator of Deville and Särndal (Journal of the American Statistical Association,
    1992), with a ridge: what is linear in the values has no variance any more. A column that the picks
    hardly have, the gradient of a rare output, say, is left as it is: they say nothing about it.

    Args:
      weights: [m], above 0.
      picks: [m], positions.
      values: [n, k], k below m.
      each: [n], how many examples each row stands for.

    Example:
      >>> found = calibrated(jnp.array([2.0, 1.0]), jnp.array([0, 1]), jnp.ones((3, 1)), jnp.ones(3))
      >>> [round(weight, 2) for weight in found.tolist()]
      [2.0, 1.0]
    """
    dot = partial(jnp.dot, precision="highest")
    own = values[picks]
    # Sums of values and of their squares at once: fewer kernels of a GPU.
    sums, wanted = (
        dot(scale, jnp.concatenate([rows, jnp.square(rows)], axis=1)).reshape(2, -1)
        for scale, rows in ((weights, own), (each, values))
    )
    held = sums[1] > HELD * wanted[1]
    own, gap = jnp.where(held[None], own, 0.0), jnp.where(held, wanted[0] - sums[0], 0.0)
    square = dot((own * weights[:, None]).T, own)
    square = square + jnp.diag(RIDGE * jnp.diag(square) + jnp.finfo(jnp.float32).tiny)
    change = dot(own, jnp.linalg.solve(square, gap))
    return weights * jnp.maximum(1 + change, LEAST)


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

    The picks' gradients, each times its weight, sum up to the sum of all rows' gradients, with hardly a
    bias. Rows are drawn systematically along their order by label and length, so that every class, and
    every length, has the share of the picks that belongs to it. Weights, one over the chance, are
    calibrated to the number of the rows and to the sum of their embeddings in ``m / 3`` random
    directions.

    Args:
      key: PRNG key.
      embeddings: [n, d], or ``Factored``.
      labels: [n], integers.
      size: static, m, at most n.
      sample_weights: [n], float32, how many examples each row stands for; None: one each.

    Returns:
      Positions [m], int32, and weights [m], float32, that sum to about n.

    Example:
      >>> rows, labels = jnp.array([[1.0], [1.0], [1.0], [9.0]]), jnp.zeros(4, int)
      >>> found, weights = importance_sample(jax.random.key(0), rows, labels, size=2)
      >>> found.tolist(), [round(weight, 1) for weight in weights.tolist()]
      ([2, 3], [3.0, 1.0])
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
    picks = systematic_sample(key, chances, order, size)
    values = jnp.ones((count, 1), jnp.float32)
    if size >= 3:
        values = jnp.concatenate([values, projections(embeddings, size // 3)], axis=1)
    return picks, calibrated(each[picks] / chances[picks], picks, values, each)
