"""How many rows of each class: by the largest remainder, or drawn without bias."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.types import Array


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


def quotas_for(
    counts: np.ndarray, size: int, quotas: object, names: np.ndarray | None = None
) -> np.ndarray:
    """Return how many picks each class of each problem gets, [p, c].

    Args:
      counts: [p, c], examples of each class.
      size: picks in all.
      quotas: "proportional" (see ``proportional_quotas``), "equal" (as equal as possible, the larger
        share to the lower class) or the quotas [c] themselves.
      names: [c], what the classes are called in a sentence; None: their places.

    Raises:
      ValueError: when the quotas cannot be met.

    Example:
      >>> quotas_for(np.array([[5, 5, 10]]), 10, "proportional").tolist()
      [[3, 2, 5]]
      >>> quotas_for(np.array([[5, 5, 10]]), 10, "equal").tolist()
      [[4, 3, 3]]
    """
    counts = np.asarray(counts, np.int64)
    classes = counts.shape[1]
    if isinstance(quotas, str):
        _checks.require(
            quotas in ("proportional", "equal"),
            f'quotas is {_checks.brief(quotas)} but must be "proportional", "equal" or one number for '
            "each class; choose one of these.",
        )
        if quotas == "equal":
            each = size // classes + (np.arange(classes) < size % classes)
            found = np.broadcast_to(each, counts.shape)
        else:
            found = proportional_quotas(counts, size, np)
    else:
        each = np.asarray(quotas)
        _checks.require(
            each.shape == (classes,)
            and np.issubdtype(each.dtype, np.integer)
            and bool((each >= 0).all()),
            f"quotas have shape {each.shape} and dtype {each.dtype} but must be {classes} non-negative "
            "integers, one for each class; pass one number of picks for each class.",
        )
        _checks.require(
            int(each.sum()) == size,
            f"quotas sum to {int(each.sum())} but size is {size} and they must agree; change one.",
        )
        found = np.broadcast_to(each.astype(np.int64), counts.shape)
    short = found > counts
    if short.any():
        problem, label = (int(x) for x in np.argwhere(short)[0])
        name = label if names is None else names.tolist()[label]
        raise ValueError(
            f"quotas ask for {found[problem, label]} picks of class {_checks.brief(name)} but it has "
            f"{counts[problem, label]} examples and none is chosen twice; lower this quota or choose "
            'quotas="proportional".'
        )
    return np.ascontiguousarray(found)


def quotas_within(counts: np.ndarray, size: int, most: np.ndarray) -> np.ndarray:
    """Return proportional quotas [c] of which none is above a limit.

    What a limit cuts off goes to the other classes.

    Args:
      counts: [c], examples of each class.
      size: picks in all, at most the sum of the limits.
      most: [c], the limits.

    Example:
      >>> quotas_within(np.array([8, 8, 4]), 10, np.array([9, 2, 9])).tolist()
      [5, 2, 3]
    """
    quotas = proportional_quotas(counts, size, np)
    fixed = np.zeros(len(counts), bool)
    while (above := ~fixed & (quotas > most)).any():
        fixed |= above
        quotas = _shared_out_again(counts, size, fixed, most)
    return quotas


def quotas_from(
    quotas: np.ndarray, counts: np.ndarray, size: int, taken: np.ndarray, *, proportional: bool
) -> np.ndarray:
    """Return quotas [c] that hold what is taken already.

    Proportional quotas are raised where more is taken, and what is left is shared out again among the
    other classes.

    Args:
      quotas: [c], picks of each class.
      counts: [c], examples of each class.
      size: picks in all.
      taken: [c], picks that are there already.
      proportional: whether quotas may be changed.

    Raises:
      ValueError: when more is taken than the size or a given quota.

    Example:
      >>> quotas, counts = np.array([4, 4, 2]), np.array([8, 8, 4])
      >>> quotas_from(quotas, counts, 10, np.array([6, 0, 0]), proportional=True).tolist()
      [6, 3, 1]
    """
    _checks.require(
        int(taken.sum()) <= size,
        f"initial hold {int(taken.sum())} picks but size is {size} and counts them; raise size.",
    )
    fixed = np.zeros(len(counts), bool)
    while (above := ~fixed & (taken > quotas)).any():
        label = int(above.argmax())
        _checks.require(
            proportional,
            f"initial hold {taken[label]} picks of class {label} (counted from 0 in the order of the "
            f'labels) but its quota is {quotas[label]}; raise it or choose quotas="proportional".',
        )
        fixed |= above
        quotas = _shared_out_again(counts, size, fixed, taken)
    return quotas


def _shared_out_again(counts: np.ndarray, size: int, fixed: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return quotas [c] where fixed classes have what they hold and the others share the rest."""
    rest = proportional_quotas(np.where(fixed, 0, counts), size - int(held[fixed].sum()), np)
    return np.where(fixed, held, rest)


def quota_edges(
    bits: Array, before: Array, running: Array, size: int, *, most: int
) -> tuple[Array, Array]:
    """Split ``size`` over the classes in proportion to their rows, rounding without bias.

    Systematic sampling (Madow, Annals of Mathematical Statistics 1949): with ``x_c = size * p_c`` and
    one uniform ``u``, class ``c`` gets ``floor(X_c + u) - floor(X_{c-1} + u)`` where ``X`` is the
    running sum of ``x``; the expectation is ``x_c`` and the error is below 1. The arithmetic is exact
    for sizes up to 2^20.

    Args:
      bits: [], uint32, random.
      before: [c], int32, rows of the classes before each.
      running: [c], int32, rows of each class and those before it; the last at least ``size``.
      size: rows to draw.
      most: static bound on the last of ``running``.

    Returns:
      The running sums of what the classes get, before each class [c] and with it [c], int32; no class
      gets more than its rows.

    Example:
      >>> ends = jnp.array([30, 40])
      >>> quota_edges(jnp.uint32(9), jnp.array([0, 30]), ends, 8, most=40)[1].tolist()
      [6, 8]
    """
    total = running[-1]
    offset = _scaled(bits, total)
    if (size + 1) * most < 2**31:
        return (size * before + offset) // total, (size * running + offset) // total

    def divided(rows: Array) -> Array:
        # The quotient by float32, less what that may err, is right or one too small; the rest, whose
        # lower 32 bits are all of it, tells which.
        near = (rows.astype(jnp.float32) * size + offset.astype(jnp.float32)) / total
        near = jnp.floor(jnp.maximum(near - 0.5, 0.0)).astype(jnp.uint32)
        whole = total.astype(jnp.uint32)
        rest = rows.astype(jnp.uint32) * jnp.uint32(size) + offset.astype(jnp.uint32) - near * whole
        return (near + (rest >= whole)).astype(jnp.int32)

    return divided(before), divided(running)


def _scaled(bits: Array, total: Array) -> Array:
    """Return ``floor(bits * total / 2^32)``, int32, exactly."""
    low, high = bits & 0xFFFF, bits >> 16
    whole = total.astype(jnp.uint32)
    total_low, total_high = whole & 0xFFFF, whole >> 16
    one = high * total_low + (low * total_low >> 16)
    other = low * total_high + (one & 0xFFFF)
    return (high * total_high + (one >> 16) + (other >> 16)).astype(jnp.int32)


def rows_needed(labels: np.ndarray, num_classes: int, size: int) -> Array:
    """Return the rows of each class [c] that a stratified draw of ``size`` out of all needs.

    Example:
      >>> rows_needed(np.array([0, 0, 0, 1]), 2, 2).tolist()
      [2, 1]
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    return jnp.asarray(-(-size * counts // len(labels)), jnp.int32)
