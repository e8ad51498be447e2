"""Greedy facility location on a matrix of dissimilarities, within classes, as one compiled program.

``f(S) = sum_i max_{j in S} s_ij`` is monotone and submodular, so the greedy choice reaches at least
``1 - 1/e`` of the best value (Nemhauser, Wolsey and Fisher, Mathematical Programming 1978).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax.types import Array


class Picks(NamedTuple):
    """What the greedy choice returns."""

    indices: Array  # [m], int32, class by class, in greedy order within each class
    gains: Array  # [m], float32


def first_largest(values: Array) -> Array:
    """Return the place of the largest value on the last axis, the lowest on a tie.

    Two plain reductions: XLA does not vectorise ``argmax`` on a CPU, where it takes five to ten times
    as long.

    Args:
      values: [..., n]; a row with a NaN gives ``n - 1``.

    Returns:
      [...], int32.

    Example:
      >>> first_largest(jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])).tolist()
      [1, 0]
    """
    last = values.shape[-1] - 1
    places = jnp.arange(last + 1, dtype=jnp.int32)
    at_top = values == jnp.max(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(at_top, places, last), axis=-1)


def largest_remainder(counts: Array, size: int) -> Array:
    """Split ``size`` over the classes in proportion to ``counts`` by the largest remainder.

    Equal remainders go to the lower class.

    Args:
      counts: [c], int32, examples of each class.
      size: at most the sum of the counts; ``size`` times the sum must stay below 2^31.

    Returns:
      [c], int32, summing to ``size``, none above its count.

    Example:
      >>> largest_remainder(jnp.array([5, 5, 10]), 10).tolist()
      [3, 2, 5]
    """
    total = jnp.sum(counts)
    whole, part = size // total, size % total
    product = counts * part
    floors = counts * whole + product // total
    remainders = product % total
    missing = size - jnp.sum(floors)
    rank = jnp.argsort(jnp.argsort(-remainders, stable=True))
    return floors + (rank < missing).astype(floors.dtype)


def greedy(
    values: Array,
    top: Array,
    classes: Array,
    quotas: Array,
    size: int,
    masses: Array | None = None,
) -> Picks:
    """Choose rows greedily, ``quotas[c]`` out of each class ``c``, covering that class.

    The similarity is ``top - value``. Every round adds one row in each class that is not yet full: the
    row whose gain ``sum_i max(0, cover_i - u_ij)`` over its own class is largest, the lowest row on a
    tie. Classes do not touch each other, so the picks are those of one greedy run per class.

    Args:
      values: [n, n], float32, symmetric dissimilarities, or similarities with the sign turned.
      top: [], float32, dissimilarity at which a row counts as not covered.
      classes: [n], int32; all zero covers the pool as one class.
      quotas: [c], int32, at most the size of each class, summing to ``size``.
      size: static number of picks ``m``.
      masses: [n], float32, how many examples each row stands for; None: one each.

    Returns:
      Picks [m] with their gains. ``O(n^2 max(quotas))`` time.

    Example:
      >>> points = jnp.array([0.0, 1.0, 10.0])
      >>> u = jnp.abs(points[:, None] - points[None, :])
      >>> greedy(u, jnp.float32(10), jnp.zeros(3, int), jnp.array([2]), 2).indices.tolist()
      [1, 2]
    """
    num_classes = quotas.shape[0]
    same = classes[:, None] == classes[None, :]
    within = jnp.where(same, values, jnp.inf)
    members = jnp.arange(num_classes, dtype=classes.dtype)[:, None] == classes[None, :]
    firsts = jnp.cumsum(quotas) - quotas

    def step(round_: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        cover, free, indices, gains = state
        nearer = jnp.maximum(cover[None, :] - within, 0.0)
        gain = jnp.sum(nearer if masses is None else nearer * masses[None, :], axis=1)
        candidates = jnp.where(members & free[None, :], gain[None, :], -1.0)
        picks = first_largest(candidates)
        unfilled = round_ < quotas
        slots = jnp.where(unfilled, firsts + round_, size)
        indices = indices.at[slots].set(picks, mode="drop")
        gains = gains.at[slots].set(gain[picks], mode="drop")
        free = free.at[jnp.where(unfilled, picks, free.shape[0])].set(False, mode="drop")
        distance = within[picks[classes], jnp.arange(free.shape[0])]
        cover = jnp.where(unfilled[classes], jnp.minimum(cover, distance), cover)
        return cover, free, indices, gains

    n = classes.shape[0]
    state = (
        jnp.full(n, top, jnp.float32),
        jnp.ones(n, bool),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.float32),
    )
    return Picks(*jax.lax.fori_loop(0, jnp.max(quotas), step, state)[2:])


def coverage_counts(values: Array, classes: Array, picks: Array, masses: Array | None = None) -> Array:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    A row whose class has no pick goes to the nearest pick of any class; a pick stands for itself;
    equal dissimilarities go to the earlier pick. The counts sum to the number of rows.

    Args:
      values: [n, n], float32, dissimilarities.
      classes: [n], int32.
      picks: [m], int32.
      masses: [n], float32, how many examples each row stands for; None: one each.

    Returns:
      [m], float32, each at least the pick's own mass.

    Example:
      >>> points = jnp.array([0.0, 1.0, 10.0])
      >>> u = jnp.abs(points[:, None] - points[None, :])
      >>> coverage_counts(u, jnp.zeros(3, int), jnp.array([1, 2])).tolist()
      [2.0, 1.0]
    """
    same = classes[:, None] == classes[picks][None, :]
    allowed = same | ~jnp.any(same, axis=1, keepdims=True)
    nearest = jnp.argmin(jnp.where(allowed, values[:, picks], jnp.inf), axis=1)
    slots = jnp.arange(picks.shape[0], dtype=nearest.dtype)
    nearest = nearest.at[picks].set(slots)
    return jnp.zeros(picks.shape[0], jnp.float32).at[nearest].add(1.0 if masses is None else masses)
