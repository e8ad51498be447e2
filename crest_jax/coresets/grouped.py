"""Plain greedy facility location for many small groups at once, as one compiled program.

The mini-batches of CREST are many small problems: the classes of each of ``P`` random subsets. Every
round picks one example in each group that is not yet full. Dissimilarities are laid out [k, g, s],
clients first and candidates last, so that gains grow by adding long rows, without any reduction.
Candidates are padded to whole vectors, clients less: ``k <= s``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.distances import Term, column_sums
from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.rules import NO_RULES, Rules, decided, enough, spent
from crest_jax.coresets.sums import without_direction
from crest_jax.types import Array

_CLIENTS = 4  # clients added to the gains in one fused loop


class GroupPicks(NamedTuple):
    """Picks of ``g`` groups, in greedy order.

    Attributes:
      places: [g, rounds], int32, places in the group; garbage beyond the quota.
      gains: [g, rounds], float32.
      weights: [g, rounds], float32, total mass of the members nearest to the pick.
      nearest: [g, s], int32, round of the pick of each member; -1 before there is one.
      taken: [g], int32, picks made.
    """

    places: Array
    gains: Array
    weights: Array
    nearest: Array
    taken: Array


class _State(NamedTuple):
    cover: Array  # [g, s]
    nearest: Array  # [g, s]
    free: Array  # [g, s]
    turns: Array  # [g, s], round in which a member was picked, or -1
    won: Array  # [g, s], its gain then
    quotas: Array  # [g], lowered where a rule ends a group
    left: Array  # [g], units of the budget


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

    def at_once(result: Array) -> Array:
        x, y = part[:grouped, :, :clients].transpose(0, 2, 1)[..., None], part[:grouped, None]
        return result + jnp.sum(term(x, y), axis=0)

    if grouped:
        by_16 = partial(jax.lax.fori_loop, np.int32(0), np.int32(grouped // 16), add_many)
        result = jax.lax.platform_dependent(result, cpu=by_16, default=at_once)
    for k in range(grouped, width):
        result = add(result, part[k])
    return result


def greedy_in_groups(
    values: Array,
    counts: Array,
    quotas: Array,
    top: Array,
    rounds: int,
    rules: Rules = NO_RULES,
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
      rules: by group, the weights [g, s] among them.
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
    _, groups, size = values.shape
    place = jnp.arange(size, dtype=jnp.int32)[None, :]
    member = place < counts[:, None]
    free = member if rules.allowed is None else member & rules.allowed

    def step(state: tuple[Array, _State]) -> tuple[Array, _State]:
        round_, (cover, nearest, free, turns, won, quotas, left) = state
        gain = _gains(values, cover.T, rules.weights)
        score = jnp.where(free, rules.per_cost(gain), -1.0)
        pick = first_largest(rules.affordable(score, left[:, None]))
        filling = (round_ < quotas)[:, None]
        if rules.binding:
            pick, taken = decided(rules, gain, pick, free, left, round_)
            filling &= taken[:, None]
            quotas = jnp.where(taken, quotas, jnp.minimum(quotas, round_))
            left = spent(rules, pick, filling[:, 0], left)
        row = _row_of(values, pick, symmetric)
        here = place == pick[:, None]
        closer = (row < cover) & member & filling
        # A pick stands for itself, and a member belongs to the first pick before it belongs to another,
        # unless it belongs to a row of elsewhere.
        unowned = round_ == 0
        if rules.earlier is not None:
            unowned &= cover >= top[:, None]
        owned = closer | ((here | unowned) & member & filling)
        cover = jnp.where(closer, row, cover)
        return round_ + 1, _ended(rules, round_ + 1, top, _State(
            cover=cover,
            nearest=jnp.where(owned, round_, nearest),
            free=free & ~(here & filling),
            turns=jnp.where(here & filling, round_, turns),
            won=jnp.where(here & filling, gain, won),
            quotas=quotas,
            left=left,
        ))  # fmt: skip

    first = top[:, None] if rules.earlier is None else jnp.minimum(top[:, None], rules.earlier)
    start = _State(
        cover=jnp.where(member, first, -jnp.inf),
        nearest=jnp.full((groups, size), -1, jnp.int32),
        free=free,
        turns=jnp.full((groups, size), -1, jnp.int32),
        won=jnp.zeros((groups, size), jnp.float32),
        quotas=quotas,
        left=jnp.broadcast_to(jnp.int32(0) if rules.budget is None else rules.budget, counts.shape),
    )
    begin = (jnp.int32(0), _ended(rules, jnp.int32(0), top, start))
    as_many = partial(jax.lax.while_loop, lambda state: state[0] < jnp.max(state[1].quotas), step)
    if rules.binding or rules.share is not None:
        return _picks_of(as_many(begin)[1], rounds, rules.weights)
    # A GPU's host would wait at every round of a number that the device decides.
    turn = lambda _, state: step(state)  # noqa: E731
    fixed = partial(jax.lax.fori_loop, np.int32(0), np.int32(rounds), turn, unroll=min(4, rounds))
    last = jax.lax.platform_dependent(begin, cpu=as_many, default=fixed)[1]
    return _picks_of(last, rounds, rules.weights)


def _picks_of(last: _State, rounds: int, each: Array | None) -> GroupPicks:
    """Line up the picks of each group by turn; members count ``each`` [g, s]."""
    groups, size = last.turns.shape
    # Counted by a product, which a CPU does much faster than a scatter.
    rows = jnp.arange(rounds, dtype=jnp.int32)[None, :, None]
    owned = (last.nearest[:, None, :] == rows).astype(jnp.float32)
    if each is None:
        weights = jnp.dot(owned.reshape(-1, size), jnp.ones(size, jnp.float32), precision="highest")
    else:
        weights = jnp.einsum("grs,gs->gr", owned, each, precision="highest")
    slots = jnp.where(last.turns >= 0, last.turns, rounds)
    group = jnp.arange(groups, dtype=jnp.int32)[:, None]
    place = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32)[None, :], slots.shape)
    places = jnp.zeros((groups, rounds), jnp.int32).at[group, slots].set(place, mode="drop")
    gains = jnp.zeros((groups, rounds), jnp.float32).at[group, slots].set(last.won, mode="drop")
    return GroupPicks(places, gains, weights.reshape(groups, rounds), last.nearest, last.quotas)


def assigned(nearest: Array, rows: Array, member: Array, firsts: Array, count: int) -> Array:
    """Return the slot of the pick of each row [n], int32; -1 where there is none.

    Args:
      nearest: [g, s], int32, see ``GroupPicks``.
      rows: [g, s], int32, which row each member is.
      member: [g, k], bool, which of the first ``k <= s`` places are members.
      firsts: [g], int32, slot of the first pick of each group.
      count: static, n.

    Example:
      >>> rows, member = jnp.array([[2, 0]]), jnp.array([[True, True]])
      >>> assigned(jnp.array([[1, 0]]), rows, member, jnp.array([5]), 3).tolist()
      [5, -1, 6]
    """
    width = member.shape[1]
    nearest, rows = nearest[:, :width], rows[:, :width]
    slots = jnp.where(nearest >= 0, firsts[:, None] + nearest, -1)
    places = jnp.where(member, rows, count)
    return jnp.full(count, -1, jnp.int32).at[places].set(slots.astype(jnp.int32), mode="drop")


def _gains(values: Array, covers: Array, weights: Array | None) -> Array:
    """Return the gains [g, s] of all candidates, over dissimilarities [k, g, s] and covers [s, g]."""
    clients, groups, size = values.shape

    def add(index: Array, gain: Array) -> Array:
        for k in range(_CLIENTS):
            client = index * _CLIENTS + k
            nearer = jnp.maximum(covers[client][:, None] - values[client], 0.0)
            gain = gain + (nearer if weights is None else weights[:, client, None] * nearer)
        return gain

    def some_at_a_time(values: Array, covers: Array, weights: Array | None) -> Array:
        del values, covers, weights
        none = jnp.zeros((groups, size), jnp.float32)
        return jax.lax.fori_loop(np.int32(0), np.int32(clients // _CLIENTS), add, none)

    def at_once(values: Array, covers: Array, weights: Array | None) -> Array:
        nearer = jnp.maximum(covers[:clients, :, None] - values, 0.0)
        return jnp.sum(nearer if weights is None else weights.T[:clients, :, None] * nearer, axis=0)

    # Long rows added up are fastest on a CPU; on a GPU every turn of a loop is a kernel.
    ways = {"cpu": some_at_a_time, "default": at_once}
    return jax.lax.platform_dependent(values, covers, weights, **ways)


def _row_of(values: Array, picks: Array, symmetric: bool) -> Array:
    """Return the dissimilarities [g, s] of members to a pick of each group, over values [k, g, s]."""
    clients, groups, size = values.shape
    every = jnp.arange(groups, dtype=jnp.int32)
    if symmetric:
        return values[picks, every]
    return jnp.pad(values[:, every, picks].T, ((0, 0), (0, size - clients)))


def _ended(rules: Rules, turn: Array, top: Array, state: _State) -> _State:
    """Lower the quotas of groups that are covered well enough after ``turn`` rounds."""
    if rules.share is None:
        return state
    over = enough(rules, state.cover, rules.weights, top)
    if rules.first is not None:
        over &= turn >= jnp.sum(rules.first >= 0, axis=1, dtype=jnp.int32)
    return state._replace(quotas=jnp.where(over, jnp.minimum(turn, state.quotas), state.quotas))
