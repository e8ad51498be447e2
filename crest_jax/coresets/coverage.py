"""The weights: how many examples each pick stands for."""

from typing import NamedTuple

import jax.numpy as jnp

from crest_jax.coresets.greedy import first_largest
from crest_jax.types import Array, Coreset


class Counted(NamedTuple):
    """Who stands for whom.

    Attributes:
      weights: [m], float32, the mass that each pick stands for.
      assignments: [n], int32, slot of the pick of each row; -1 where there is no single one.
    """

    weights: Array
    assignments: Array


def coverage_counts(
    values: Array,
    classes: Array,
    picks: Array,
    sample_weights: Array | None = None,
    *,
    spread: bool = False,
    itself: bool = True,
) -> Counted:
    """Count the rows that each pick stands for: those of its class to which it is the nearest pick.

    A pick stands for itself; equal dissimilarities go to the earlier pick. The counts sum to the number
    of rows.

    Args:
      values: [n, n], float32, dissimilarities of rows to candidates.
      classes: [n], int32.
      picks: [m], int32.
      sample_weights: [n], float32, how many examples each row stands for; None: one each.
      spread: static. Rows whose class has no pick count at all picks in proportion; otherwise at the
        nearest pick of any class.
      itself: static. Whether candidates are the rows; if not, values are [n, k], of one class.

    Returns:
      Weights [m], each at least the pick's own mass, and the assignments [n].

    Example:
      >>> points = jnp.array([0.0, 1.0, 10.0])
      >>> u = jnp.abs(points[:, None] - points[None, :])
      >>> coverage_counts(u, jnp.zeros(3, int), jnp.array([1, 2])).weights.tolist()
      [2.0, 1.0]
    """
    heads = classes[picks] if itself else jnp.broadcast_to(classes[0], picks.shape)
    same = classes[:, None] == heads[None, :]
    own = jnp.any(same, axis=1, keepdims=True)
    nearest = first_largest(-jnp.where(same | ~own, values[:, picks], jnp.inf))
    if itself:
        nearest = nearest.at[picks].set(jnp.arange(picks.shape[0], dtype=jnp.int32))
    each = jnp.ones(values.shape[0], jnp.float32) if sample_weights is None else sample_weights
    counted = jnp.where(own[:, 0], each, 0.0) if spread else each
    found = jnp.zeros(picks.shape[0], jnp.float32).at[nearest].add(counted)
    if not spread:
        return Counted(found, nearest)
    return Counted(scaled_up(found, jnp.sum(each)), jnp.where(own[:, 0], nearest, -1))


def scaled_up(weights: Array, total: Array | float) -> Array:
    """Return weights [m] scaled to a total [], as they are where they reach it.

    Where all are 0, since only rows weigh that no pick stands for, the picks share it alike.

    Example:
      >>> scaled_up(jnp.array([1.0, 3.0]), 8.0).tolist()
      [2.0, 6.0]
      >>> scaled_up(jnp.zeros(2), 8.0).tolist()
      [4.0, 4.0]
    """
    found = jnp.sum(weights)
    alike = jnp.full(weights.shape, total / max(1, weights.size), weights.dtype)
    scaled = jnp.where(found > 0, weights * (total / jnp.where(found > 0, found, 1.0)), alike)
    return jnp.where(found == total, weights, scaled)


def covered_share(
    objective: Array, top: Array | float, mass: Array | float, floor: Array | float = 0.0
) -> Array:
    """Return the objective over the largest possible one, [], between 0 and 1.

    Args:
      objective: [], float32.
      top: [], dissimilarity at which the similarity is 0.
      mass: [], what all rows count together.
      floor: [], what is left uncovered when every candidate is picked: the sum of mass times the
        dissimilarity to the nearest candidate. With ``top`` 0 the negative of the largest objective.

    Example:
      >>> float(covered_share(jnp.float32(15), 2.0, 10.0))
      0.75
    """
    largest = top * mass - floor
    share = objective / jnp.where(largest > 0, largest, 1.0)
    return jnp.where(largest > 0, jnp.clip(share, 0.0, 1.0), 1.0).astype(jnp.float32)


def empty_coreset(
    rows: int, top: Array, each: Array | None, objective: Array, floor: Array | float = 0.0
) -> Coreset:
    """Return a coreset without picks of some ``rows``, whose earlier rows cover ``objective`` [].

    Example:
      >>> empty_coreset(3, jnp.float32(1), None, jnp.float32(3)).assignments.tolist()
      [-1, -1, -1]
    """
    none = jnp.zeros(0, jnp.float32)
    mass = float(rows) if each is None else jnp.sum(each)
    alone = jnp.full(rows, -1, jnp.int32)
    share = covered_share(objective, top, mass, floor)
    return Coreset(none.astype(jnp.int32), none, none, objective, alone, share)


def best_similarities(
    matrix: Array,
    labels: Array | None = None,
    codes: Array | None = None,
    allowed: Array | None = None,
) -> Array:
    """Return the similarity [n] of each row to the candidate of its class that is most similar, or 0.

    Args:
      matrix: [k, n], similarities of candidates to rows.
      labels: [n], int32; None: one class.
      codes: [k], int32, classes of the candidates; None: these are the rows.
      allowed: [k], bool, which candidates count; None: all.

    Example:
      >>> matrix = jnp.array([[3.0, 1.0], [1.0, -2.0]])
      >>> best_similarities(matrix, allowed=jnp.array([False, True])).tolist()
      [1.0, 0.0]
    """
    if labels is not None:
        codes = labels if codes is None else codes
        matrix = jnp.where(codes[:, None] == labels[None, :], matrix, 0.0)
    if allowed is not None:
        matrix = jnp.where(allowed[:, None], matrix, 0.0)
    return jnp.maximum(jnp.max(matrix, axis=0), 0.0)
