"""The weights: how many examples each pick stands for."""

import jax.numpy as jnp

from crest_jax.coresets.greedy import first_largest
from crest_jax.types import Array


def coverage_counts(
    values: Array,
    classes: Array,
    picks: Array,
    sample_weights: Array | None = None,
    *,
    spread: bool = False,
) -> Array:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    A pick stands for itself; equal dissimilarities go to the earlier pick. The counts sum to the number
    of rows.

    Args:
      values: [n, n], float32, dissimilarities.
      classes: [n], int32.
      picks: [m], int32.
      sample_weights: [n], float32, how many examples each row stands for; None: one each.
      spread: static. Rows whose class has no pick count at all picks in proportion; otherwise at the
        nearest pick of any class.

    Returns:
      [m], float32, each at least the pick's own mass.

    Example:
      >>> points = jnp.array([0.0, 1.0, 10.0])
      >>> u = jnp.abs(points[:, None] - points[None, :])
      >>> coverage_counts(u, jnp.zeros(3, int), jnp.array([1, 2])).tolist()
      [2.0, 1.0]
    """
    same = classes[:, None] == classes[picks][None, :]
    own = jnp.any(same, axis=1, keepdims=True)
    nearest = first_largest(-jnp.where(same | ~own, values[:, picks], jnp.inf))
    slots = jnp.arange(picks.shape[0], dtype=jnp.int32)
    nearest = nearest.at[picks].set(slots)
    each = jnp.ones(values.shape[0], jnp.float32) if sample_weights is None else sample_weights
    counted = jnp.where(own[:, 0], each, 0.0) if spread else each
    found = jnp.zeros(picks.shape[0], jnp.float32).at[nearest].add(counted)
    return scaled_up(found, jnp.sum(each)) if spread else found


def scaled_up(weights: Array, total: Array | float) -> Array:
    """Return weights [m] scaled to a total [], as they are where they reach it.

    Example:
      >>> scaled_up(jnp.array([1.0, 3.0]), 8.0).tolist()
      [2.0, 6.0]
    """
    found = jnp.sum(weights)
    return jnp.where(found == total, weights, weights * (total / found))
