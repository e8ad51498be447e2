"""Greedy facility location on a matrix of dissimilarities, within classes, as one compiled program.

``f(S) = sum_i max_{j in S} s_ij`` is monotone and submodular, so the greedy choice reaches at least
``1 - 1/e`` of the best value (Nemhauser, Wolsey and Fisher, Mathematical Programming 1978).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


def largest_remainder(counts: Any, size: Any, xp: Any = jnp) -> Any:
    """Split ``size`` over the classes in proportion to ``counts`` by the largest remainder.

    Equal remainders go to the lower class.

    Args:
      counts: [..., c], integers, examples of each class.
      size: at most the sum of the counts, an integer or [..., 1]; in int32 ``size`` times the sum must
        stay below 2^31.
      xp: ``jax.numpy``, or ``numpy`` on the host.

    Returns:
      [..., c], summing to ``size``, none above its count.

    Example:
      >>> largest_remainder(jnp.array([5, 5, 10]), 10).tolist()
      [3, 2, 5]
    """
    total = xp.maximum(xp.sum(counts, axis=-1, keepdims=True, dtype=counts.dtype), 1)
    product = counts * (size % total)
    floors = counts * (size // total) + product // total
    missing = size - xp.sum(floors, axis=-1, keepdims=True, dtype=counts.dtype)
    return floors + (_rank(-(product % total), xp) < missing).astype(counts.dtype)


def _rank(values: Any, xp: Any) -> Any:
    """Return places in rising order along the last axis, equal values in the order they come."""
    order = xp.argsort(values, axis=-1, stable=True)
    return xp.argsort(order, axis=-1, stable=True)


def covered_as_a_whole(counts: Any, size: int, xp: Any = jnp) -> Any:
    """Return whether classes are left aside, [...]: one or more picks a class, but fewer than two.

    A choice among all rows then errs no more than one pick in every class
    (``experiments/results/few_picks``).

    Args:
      counts: [..., c], examples of each class; those without do not count.
      size: picks.
      xp: see ``largest_remainder``.

    Example:
      >>> [bool(covered_as_a_whole(jnp.array([3, 0, 4]), size)) for size in (1, 2, 3, 4)]
      [False, True, True, False]
    """
    present = xp.sum(counts > 0, axis=-1)
    return (size >= present) & (size < 2 * present)


def proportional_quotas(counts: Any, size: int, xp: Any = jnp, *, most: int = 0) -> Any:
    """Divide ``size`` picks among classes in proportion to their examples.

    By the largest remainder; but where that leaves out a class every class gets one pick, and what is
    left goes by the share above one. With fewer picks than classes the largest classes get one each,
    of equal ones the lower.

    Args:
      counts: [..., c], integers; ``size`` times the sum must stay below 2^31 in int32.
      size: static, picks in all.
      xp: see ``largest_remainder``.
      most: bound on the sum of the counts, in int32, where products that do not fit lose low bits.

    Returns:
      [..., c], summing to ``size``, none above its count.

    Example:
      >>> proportional_quotas(jnp.array([98, 1, 1]), 10).tolist()
      [8, 1, 1]
      >>> proportional_quotas(jnp.array([3, 5, 4]), 2).tolist()
      [0, 1, 1]
    """
    kind = counts.dtype
    total = xp.sum(counts, axis=-1, keepdims=True, dtype=kind)
    one = (counts > 0).astype(kind)
    present = xp.sum(one, axis=-1, keepdims=True, dtype=kind)
    plain = largest_remainder(counts, size, xp)
    left_out = xp.any((plain == 0) & (counts > 0), axis=-1, keepdims=True)
    if xp is np and not left_out.any():
        return plain
    # Bits of the shares are dropped where their products would not fit.
    above = xp.maximum(size * counts - total, 0) >> max(0, (size * size * most).bit_length() - 31)
    each = one + largest_remainder(above, xp.maximum(size - present, 0), xp)
    largest = (_rank(-counts, xp) < size).astype(kind)
    return xp.where(size < present, largest, xp.where(left_out, each, plain))


def sampled_classes(key: Array, masses: Array, counts: Array, size: int) -> tuple[Array, Array]:
    """Draw ``size`` classes, one pick each, with probabilities in proportion to masses where possible.

    Systematic sampling (Madow, Annals of Mathematical Statistics 1949); classes whose share would
    exceed one are certain. A sum over classes is estimated without bias by the drawn ones, each counted
    ``factors`` times.

    Args:
      key: PRNG key.
      masses: [c], float32, at least 0; classes with examples and no mass are drawn last.
      counts: [c], int32, examples of each class, more than ``size`` of them above 0; a class without
        any is never drawn.
      size: static.

    Returns:
      Which classes are drawn [c], int32, 0 or 1, and one over their probabilities [c], float32.

    Example:
      >>> masses, counts = jnp.array([4.0, 1.0, 0.0, 1.0]), jnp.array([1, 1, 0, 1])
      >>> drawn, factors = sampled_classes(jax.random.key(0), masses, counts, 2)
      >>> int(drawn.sum()), int(drawn[0]), factors[jnp.array([0, 1, 3])].tolist()
      (2, 1, [1.0, 2.0, 2.0])
    """
    # In whole numbers, so that exactly ``size`` are drawn whatever the rounding.
    unit = 2**30 // max(1, size) - masses.shape[0]
    shares = masses / jnp.maximum(jnp.sum(masses), 1e-30)
    whole = jnp.round(shares * unit).astype(jnp.int32) + (counts > 0).astype(jnp.int32)
    order = jnp.argsort(-whole, stable=True)
    falling = whole[order]
    rest = jnp.cumsum(falling[::-1], dtype=jnp.int32)[::-1]
    left = size - jnp.arange(whole.shape[0], dtype=jnp.int32)
    certain = (left * falling >= rest) & (left > 0)
    certain = jnp.cumprod(certain.astype(jnp.int32), dtype=jnp.int32)
    sure = jnp.zeros_like(whole).at[order].set(certain)
    others = jnp.where(sure > 0, 0, whole)
    wanted, total = size - jnp.sum(sure, dtype=jnp.int32), jnp.sum(others, dtype=jnp.int32)
    start = jax.random.randint(key, (), jnp.int32(0), jnp.maximum(total, 1), jnp.int32)
    edges = (wanted * jnp.cumsum(others, dtype=jnp.int32) + start) // jnp.maximum(total, 1)
    drawn = sure + jnp.diff(edges, prepend=jnp.int32(0))
    chance = (wanted * others).astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
    return drawn, jnp.where(sure > 0, 1.0, 1 / jnp.where(others > 0, chance, 1.0))


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
    firsts = jnp.cumsum(quotas, dtype=jnp.int32) - quotas

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
        distance = within[picks[classes], jnp.arange(free.shape[0], dtype=jnp.int32)]
        cover = jnp.where(unfilled[classes], jnp.minimum(cover, distance), cover)
        return cover, free, indices, gains

    n = classes.shape[0]
    state = (
        jnp.full(n, top, jnp.float32),
        jnp.ones(n, bool),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.float32),
    )
    return Picks(*jax.lax.fori_loop(np.int32(0), jnp.max(quotas), step, state)[2:])


def coverage_counts(
    values: Array, classes: Array, picks: Array, masses: Array | None = None, *, spread: bool = False
) -> Array:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    A pick stands for itself; equal dissimilarities go to the earlier pick. The counts sum to the number
    of rows.

    Args:
      values: [n, n], float32, dissimilarities.
      classes: [n], int32.
      picks: [m], int32.
      masses: [n], float32, how many examples each row stands for; None: one each.
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
    each = jnp.ones(values.shape[0], jnp.float32) if masses is None else masses
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
