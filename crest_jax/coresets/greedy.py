"""Facility location on stored similarities, and what every form of it shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.types import Array

_UNROLL = 4  # rounds written out, where their number is static: a turn of a loop costs a kernel itself


class Picks(NamedTuple):
    """What the greedy choice returns.

    Attributes:
      indices: [m], int32, class by class, in greedy order within each class.
      gains: [m], float32.
    """

    indices: Array
    gains: Array


def first_largest(values: Array) -> Array:
    """Return the place of the largest value on the last axis, the lowest on a tie.

    Two plain reductions on a CPU: XLA does not vectorise ``argmax`` there, where it takes five to ten
    times as long.

    Args:
      values: [..., n], no NaN.

    Returns:
      [...], int32.

    Example:
      >>> first_largest(jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])).tolist()
      [1, 0]
    """

    def by_value(values: Array) -> Array:
        last = values.shape[-1] - 1
        places = jnp.arange(last + 1, dtype=jnp.int32)
        at_top = values == jnp.max(values, axis=-1, keepdims=True)
        return jnp.min(jnp.where(at_top, places, last), axis=-1)

    def by_place(values: Array) -> Array:
        return jax.lax.argmax(values, values.ndim - 1, jnp.int32)

    return jax.lax.platform_dependent(values, cpu=by_value, default=by_place)


def greedy(
    values: Array,
    top: Array,
    classes: Array,
    quotas: Array,
    size: int,
    sample_weights: Array | None = None,
    allowed: Array | None = None,
    first: Array | None = None,
    rounds: int | None = None,
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
      sample_weights: [n], float32, how many examples each row stands for; None: one each.
      allowed: [n], bool, rows that may be picked; None: all.
      first: [k], int32, rows that are picked first, in this order, for one class; None: none.
      rounds: static, at least the largest quota, so that a GPU's host need not wait for it at every
        round; None: as many as the largest quota.

    Returns:
      Picks [m] with their gains. ``O(n^2 max(quotas))`` time.

    Example:
      >>> points = jnp.array([0.0, 1.0, 10.0])
      >>> u = jnp.abs(points[:, None] - points[None, :])
      >>> greedy(u, jnp.float32(10), jnp.zeros(3, int), jnp.array([2]), 2).indices.tolist()
      [1, 2]
    """
    num_classes, n = quotas.shape[0], classes.shape[0]
    rows = jnp.arange(n, dtype=jnp.int32)
    same = classes[:, None] == classes[None, :]
    within = jnp.where(same, values, jnp.inf)
    members = jnp.arange(num_classes, dtype=classes.dtype)[:, None] == classes[None, :]
    members = members if allowed is None else members & allowed[None, :]

    def step(round_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        cover, turns, won = state
        nearer = jnp.maximum(cover[None, :] - within, 0.0)
        gain = jnp.sum(nearer if sample_weights is None else nearer * sample_weights[None, :], axis=1)
        picks = first_largest(jnp.where(members & (turns < 0)[None, :], gain[None, :], -1.0))
        if first is not None:
            given = first[jnp.minimum(round_, first.shape[0] - 1)]
            picks = jnp.where(round_ < first.shape[0], given, picks)
        # What follows is one pass over the rows, without a scatter: one kernel on a GPU.
        filling, pick = (round_ < quotas)[classes], picks[classes]
        cover = jnp.where(filling, jnp.minimum(cover, within[pick, rows]), cover)
        here = filling & (pick == rows)
        return cover, jnp.where(here, round_, turns), jnp.where(here, gain, won)

    start = jnp.full(n, top, jnp.float32), jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.float32)
    if rounds is None:
        _, turns, won = jax.lax.fori_loop(np.int32(0), jnp.max(quotas), step, start)
    else:
        unroll = min(rounds, _UNROLL)
        _, turns, won = jax.lax.fori_loop(np.int32(0), np.int32(rounds), step, start, unroll=unroll)
    firsts = jnp.cumsum(quotas, dtype=jnp.int32) - quotas
    slots = jnp.where(turns >= 0, firsts[classes] + turns, size)
    indices = jnp.zeros(size, jnp.int32).at[slots].set(rows, mode="drop")
    return Picks(indices, jnp.zeros(size, jnp.float32).at[slots].set(won, mode="drop"))
