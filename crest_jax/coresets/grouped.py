"""Plain greedy facility location for many small groups at once, as one compiled program.

The mini-batches of CREST are many small problems: the classes of each of ``P`` random subsets. Every
round picks one example in each group that is not yet full. Dissimilarities are laid out [k, g, s],
clients first and candidates last, so that gains grow by adding long rows, without any reduction.
Candidates are padded to whole vectors, clients less: ``k <= s``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.distances import Term, column_sums
from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.sums import without_direction
from crest_jax.types import Array

_CLIENTS = 4  # clients added to the gains in one fused loop


class GroupPicks(NamedTuple):
    """Picks of ``g`` groups, in greedy order.

    Attributes:
      places: [g, rounds], int32, places in the group; garbage beyond the quota.
      gains: [g, rounds], float32.
      weights: [g, rounds], float32, total mass of the members nearest to the pick.
    """

    places: Array
    gains: Array
    weights: Array


def dissimilarities(metric: Metric, points: Points, clients: int) -> Array:
    """Return dissimilarities [k, g, s] of the first ``k`` members of groups to all.

    Args:
      metric: any but "precomputed".
      points: parts [d_l, g, s], and ``blank`` [g, s].
      clients: static, k.

    Example:
      >>> points = Points((jnp.array([[[0.0, 3.0]]]),))
      >>> dissimilarities(Metric("euclidean", 1.0), points, 2)[:, 0].tolist()
      [[0.0, 3.0], [3.0, 0.0]]
    """
    a = points.parts[0]
    if len(points.parts) == 1:
        found = column_sums(metric.form, lambda term: _sums(a, clients, term))
    else:
        b = points.parts[1]
        found = column_sums(
            metric.form,
            lambda term: _sums(a, clients, term),
            lambda term: _sums(b, clients, term),
            lambda: (
                jnp.sum(jnp.square(b[:, :, :clients]), axis=0).T[:, :, None],
                jnp.sum(jnp.square(a), axis=0)[None],
            ),
        )
    if points.blank is not None:
        own = points.blank[:, :clients].T[:, :, None]
        found = found + without_direction(own, points.blank[None])
    return metric.from_sums(found)


def _sums(part: Array, clients: int, term: Term) -> Array:
    """Sum ``term`` over the columns of all pairs in groups, [k, g, s]."""
    width, groups, size = part.shape
    result = jnp.zeros((clients, groups, size), jnp.float32)
    grouped = 0 if width <= 64 else width - width % 16

    def add(result: Array, column: Array) -> Array:
        return result + term(column[:, :clients].T[:, :, None], column[None])

    def add_many(index: Array, result: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(part, index * 16, 16)
        for k in range(16):
            result = add(result, block[k])
        return result

    if grouped:
        result = jax.lax.fori_loop(np.int32(0), np.int32(grouped // 16), add_many, result)
    for k in range(grouped, width):
        result = add(result, part[k])
    return result


def greedy_in_groups(
    values: Array,
    counts: Array,
    quotas: Array,
    top: Array,
    rounds: int,
    sample_weights: Array | None = None,
    *,
    symmetric: bool = True,
) -> GroupPicks:
    """Choose ``quotas[g]`` members of each group, one by one, each with the largest gain.

    Args:
      values: [k, g, s], dissimilarities, or similarities with the sign turned, of clients to
        candidates; ``k`` a multiple of 4.
      counts: [g], int32, members of each group, at most ``k``; the places beyond are ignored.
      quotas: [g], int32, at most the counts and at most ``rounds``.
      top: [g], float32, what a member counts as covered with before any pick.
      rounds: static, largest quota.
      sample_weights: [g, s], float32, how many examples each member stands for; None: one each.
      symmetric: static, whether values are symmetric where both are members, which saves work.

    Returns:
      The picks; equal gains go to the lowest place.

    Example:
      >>> points = jnp.array([0.0, 1.0, 9.0, 0.0])
      >>> u = jnp.abs(points[:, None] - points[None])[:, None]
      >>> picks = greedy_in_groups(u, jnp.array([3]), jnp.array([2]), jnp.array([9.0]), 2)
      >>> picks.places.tolist(), picks.weights.tolist()
      ([[1, 2]], [[2.0, 1.0]])
    """
    clients, groups, size = values.shape
    place = jnp.arange(size, dtype=jnp.int32)[None, :]
    member = place < counts[:, None]

    def step(round_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        cover, nearest, free, places, gains = state
        covers = cover.T

        def add(index: Array, gain: Array) -> Array:
            for k in range(_CLIENTS):
                client = index * _CLIENTS + k
                nearer = jnp.maximum(covers[client][:, None] - values[client], 0.0)
                gain = gain + (
                    nearer if sample_weights is None else sample_weights[:, client, None] * nearer
                )
            return gain

        none = jnp.zeros((groups, size), jnp.float32)
        gain = jax.lax.fori_loop(np.int32(0), np.int32(clients // _CLIENTS), add, none)
        gain = jnp.where(free, gain, -1.0)
        pick = first_largest(gain)
        every = jnp.arange(groups, dtype=jnp.int32)
        if symmetric:
            row = values[pick, every]
        else:
            row = jnp.pad(values[:, every, pick].T, ((0, 0), (0, size - clients)))
        here = place == pick[:, None]
        filling = (round_ < quotas)[:, None]
        closer = (row < cover) & member & filling
        # A pick stands for itself, and a member belongs to the first pick before it belongs to another.
        owned = closer | ((here | (round_ == 0)) & member & filling)
        return (
            jnp.where(closer, row, cover),
            jnp.where(owned, round_, nearest),
            free & ~(here & filling),
            places.at[:, round_].set(pick),
            gains.at[:, round_].set(jnp.max(gain, axis=1)),
        )

    start = (
        jnp.where(member, top[:, None], -jnp.inf),
        jnp.full((groups, size), -1, jnp.int32),
        member,
        jnp.zeros((groups, rounds), jnp.int32),
        jnp.zeros((groups, rounds), jnp.float32),
    )
    _, nearest, _, places, gains = jax.lax.fori_loop(np.int32(0), jnp.max(quotas), step, start)
    # Counted by a product, which a CPU does much faster than a scatter.
    turns = jnp.arange(rounds, dtype=jnp.int32)[None, :, None]
    owned = (nearest[:, None, :] == turns).astype(jnp.float32)
    if sample_weights is None:
        weights = jnp.dot(owned.reshape(-1, size), jnp.ones(size, jnp.float32), precision="highest")
    else:
        weights = jnp.einsum("grs,gs->gr", owned, sample_weights, precision="highest")
    return GroupPicks(places, gains, weights.reshape(groups, rounds))
