"""What users ask of a selection beside a size, laid out for the kernels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.asked import Extras
from crest_jax.coresets.metrics import Points, take_rows
from crest_jax.coresets.one_pool import Candidates
from crest_jax.coresets.partition import Partition
from crest_jax.coresets.rules import Rules, budget_units
from crest_jax.data.quotas import quotas_from
from crest_jax.types import Array


def most_picks(extras: Extras, count: int) -> int:
    """Return how many picks there may be at most, whatever the size."""
    pickable = extras.pickable
    most = count if pickable is None else int(pickable.sum(axis=1).min())
    if extras.others is not None:
        most = len(jax.tree.leaves(extras.others)[0])
    return most


def with_extras(parts: Partition, extras: Extras, size: int, *, all_of_them: bool) -> Partition:
    """Return the partition with quotas that the first picks and the candidates allow.

    Args:
      parts: the classes and the quotas that ``size`` alone gives.
      extras: checked.
      size: picks of each problem.
      all_of_them: no size was given, so that quotas are what may be picked.

    Raises:
      ValueError: where quotas cannot be met.
    """
    quotas = parts.quotas.copy()
    for p, (labels, counts) in enumerate(zip(parts.labels, parts.counts, strict=True)):
        room = counts
        if extras.pickable is not None:
            room = np.bincount(labels[extras.pickable[p]], minlength=len(counts))
        if all_of_them:
            quotas[p] = np.minimum(quotas[p], room)
        if extras.first is not None:
            taken = np.bincount(labels[extras.first[p]], minlength=len(counts))
            quotas[p] = quotas_from(quotas[p], counts, size, taken, proportional=parts.spread)
        short = np.flatnonzero(quotas[p] > room)
        if len(short) and extras.others is None:
            raise ValueError(
                f"candidates hold {room[short[0]]} examples of class {short[0]} (counted from 0 in the "
                f"order of the labels) but its quota is {quotas[p, short[0]]}; add candidates, or pass "
                "other quotas."
            )
    return parts._replace(quotas=quotas)


def _places(parts: Partition, rows: np.ndarray, among: np.ndarray | None, p: int) -> np.ndarray:
    """Return places [c, k] of rows [k] within their classes, -1 beyond; ``among`` [n]: who counts."""
    labels = parts.labels[p]
    order = np.argsort(labels, kind="stable")
    order = order if among is None else order[among[order]]
    firsts = np.searchsorted(labels[order], np.arange(parts.number))
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(order)) - firsts[labels[order]]
    own = [place[rows[labels[rows] == c]] for c in range(parts.number)]
    found = np.full((parts.number, max(len(x) for x in own)), -1, np.int32)
    for c, places in enumerate(own):
        found[c, : len(places)] = places
    return found


def _wide(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays [c, k] of different k, filled with -1."""
    most = max(piece.shape[1] for piece in pieces)
    return np.stack([np.pad(x, ((0, 0), (0, most - x.shape[1])), constant_values=-1) for x in pieces])


def weight_exponents(extras: Extras, problems: int) -> np.ndarray:
    """Return the powers of two [p] that bring the largest weights to [1/2, 1)."""
    if extras.weights is None:
        return np.zeros(problems, int)
    return -np.frexp(extras.weights.max(axis=1))[1]


def rules_of(
    extras: Extras,
    parts: Partition,
    exponents: np.ndarray,
    shift: np.ndarray,
    earlier: Array | None = None,
) -> Rules:
    """Return the rules for all problems, leaves [p, ...], whose candidates are all rows.

    Args:
      extras: checked.
      parts: the classes.
      exponents: [p], gains are multiplied by two to this power.
      shift: [p], weights are; see ``weight_exponents``.
      earlier: [n], dissimilarities to the rows of elsewhere.
    """
    weights, first = None, None
    if extras.weights is not None:
        weights = jnp.asarray(np.ldexp(extras.weights, shift[:, None]), jnp.float32)
    if extras.first is not None:
        first = _wide([_places(parts, rows, None, p) for p, rows in enumerate(extras.first)])
    rules = Rules(
        weights=weights,
        earlier=None if earlier is None else earlier[None],
        allowed=None if extras.allowed is None else jnp.asarray(extras.allowed),
        first=None if first is None else jnp.asarray(first),
    )
    if extras.stop_gain is not None:
        rules = rules._replace(least=jnp.float32(np.ldexp(extras.stop_gain, exponents[0])))
    if extras.coverage is not None:
        rules = rules._replace(share=jnp.float32(extras.coverage))
    if extras.costs is not None:
        units, budget = budget_units(extras.costs, extras.budget)
        # Scaled by a power of two, which changes no order and rounds nothing.
        costs = np.ldexp(extras.costs, -np.frexp(extras.costs.max())[1])
        rules = rules._replace(
            costs=jnp.asarray(np.maximum(costs, 1e-30), jnp.float32)[None],
            units=units[None],
            budget=budget,
            least=jnp.float32(np.finfo(np.float32).tiny),  # a gain at all
        )
    return rules


def apart(
    extras: Extras, parts: Partition, rules: Rules, points: Points, others: Points | None, p: int
) -> tuple[Rules, Candidates | None]:
    """Return the rules of one problem and its candidates, where these are not all rows.

    ``points`` are those of the problem, ``others`` the candidates of elsewhere.
    """
    rules = rules.of_problem(p)
    if others is not None:
        return rules, Candidates(others, np.zeros(others.rows, np.int32), None)
    pickable = extras.pickable
    if pickable is None:
        return rules, None
    positions = np.flatnonzero(pickable[p])
    assert rules.allowed is not None
    first = rules.first
    if extras.first is not None:
        first = jnp.asarray(_places(parts, extras.first[p], pickable[p], p))
    rules = rules._replace(
        allowed=rules.allowed[positions],
        first=first,
        costs=None if rules.costs is None else rules.costs[positions],
        units=None if rules.units is None else rules.units[positions],
    )
    return rules, Candidates(take_rows(points, positions), parts.labels[p][positions], positions)
