"""Selection class by class: greedy runs over windows of rows sorted by class, in one program."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets import metrics, sums
from crest_jax.coresets.compiling import jit_wide
from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.lazy import lazy_greedy
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.oracles import MatrixOracle, Oracle, PointOracle, padded
from crest_jax.coresets.push import push_greedy
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.coresets.run import Run
from crest_jax.coresets.stochastic import stochastic_greedy
from crest_jax.types import Array


class Members(NamedTuple):
    """Rows sorted by class.

    Attributes:
      order: [n], int32, the rows of class 0 first.
      counts: [c], int32.
    """

    order: Array
    counts: Array


class Settings(NamedTuple):
    """Static settings of ``choose_by_class``.

    Attributes:
      size: picks in all.
      rounds: largest quota of a class.
      candidate_block: largest number of candidates in a class.
      client_block: largest number of clients in a class.
      metric: what dissimilarities are measured by.
      capacity: entries of the lists of lazy greedy.
      draws: candidates per pick of stochastic greedy; 0 means lazy or push greedy.
      pending: clients that push greedy pushes in a turn; 0 means lazy greedy.
    """

    size: int
    rounds: int
    candidate_block: int
    client_block: int
    metric: Metric
    capacity: int
    draws: int
    pending: int = 0


class Chosen(NamedTuple):
    """What ``choose_by_class`` returns.

    Attributes:
      picks: [size], int32, candidate rows, class by class.
      gains: [size], float32.
      nearest: [n], int32, slot of the nearest pick of each client; -1 in a class without one.
      top: [], float32, dissimilarity at which the similarity is 0.
      taken: [c], int32, picks made of each class.
    """

    picks: Array
    gains: Array
    nearest: Array
    top: Array
    taken: Array


def members_of(labels: Array, num_classes: int) -> Members:
    """Sort rows by class.

    Example:
      >>> members_of(jnp.array([1, 0, 1]), 2).order.tolist()
      [1, 0, 2]
    """
    order = jnp.argsort(labels, stable=True).astype(jnp.int32)
    return Members(order, jnp.bincount(labels, length=num_classes).astype(jnp.int32))


def sorted_on_host(labels: np.ndarray, counts: np.ndarray, padding: int = 0) -> Members:
    """Sort rows by class in NumPy, and append ``padding`` rows that belong to no class."""
    order = np.argsort(labels, kind="stable").astype(np.int32)
    return Members(jnp.asarray(np.pad(order, (0, padding))), jnp.asarray(counts, jnp.int32))


def oracle_of(
    metric: Metric,
    own: Points,
    clients: Points | None,
    valid: Array,
    top: Array | None,
    rules: Rules = NO_RULES,
) -> PointOracle:
    """Return the oracle of one class; ``clients`` are None where they are the candidates."""
    more = rules.weights, rules.earlier
    if clients is None:
        (points,) = sums.centred(metric, own)
        return PointOracle(metric, points, points, valid, top, *more)
    # One shift for both sides: the difference of two rows must not change.
    points, client_points = sums.centred(metric, own, clients)
    return PointOracle(metric, points, client_points, valid, top, *more)


def _matrix_oracle(
    matrix: Array, places: tuple[Array, Array, Array] | None, each: Array | None
) -> MatrixOracle:
    """Return the oracle of one class, whose candidates, clients and real ones of these are ``places``.

    None: the matrix is that of the class.
    """
    if places is not None:
        rows, clients, valid = places
        matrix = jnp.where(valid[None, :], matrix[rows][:, clients], -jnp.inf)
    return MatrixOracle(matrix, None if each is None else each[: matrix.shape[1]])


def window(order: Array, start: Array, count: Array, width: int) -> tuple[Array, Array]:
    """Return ``width`` rows from ``start`` on, and which of them are among the first ``count``."""
    places = jnp.arange(width, dtype=jnp.int32)
    return order[jnp.minimum(start + places, order.shape[0] - 1)], places < count


def choose_by_class(
    candidates: Points,
    members: Members,
    clients: Points | None,
    client_members: Members,
    quotas: Array,
    top: Array | None,
    key: Array,
    rules: Rules = NO_RULES,
    *,
    settings: Settings,
) -> Chosen:
    """Run one greedy choice in each class.

    Args:
      candidates: [m] rows; for the metric "precomputed" one part, similarities [m, n] to the clients.
      members: the candidates by class.
      clients: what is to be covered, in the same form, or None when these are the candidates.
      client_members: the clients by class.
      quotas: [c], int32, picks of each class.
      top: [], float32, dissimilarity at which the similarity is 0; None for the largest one in a class,
        where the candidates are the clients.
      key: PRNG key, for stochastic greedy.
      rules: those that go by client, or by whole pool; with several classes they need a ``top``.
      settings: see ``Settings``.
    """
    metric = settings.metric
    same = clients is None
    num_clients = client_members.order.shape[0]
    count = quotas.shape[0]
    firsts = jnp.cumsum(quotas, dtype=jnp.int32) - quotas
    starts = jnp.cumsum(members.counts, dtype=jnp.int32) - members.counts
    client_starts = jnp.cumsum(client_members.counts, dtype=jnp.int32) - client_members.counts
    wide, client_wide = padded(settings.candidate_block), padded(settings.client_block)

    def one_class(index: Array, state: tuple[Chosen, Array]) -> tuple[Chosen, Array]:
        chosen, largest = state
        rows, valid = window(members.order, starts[index], members.counts[index], wide)
        client_rows, client_valid = rows, valid
        if not same:
            inside = client_starts[index], client_members.counts[index]
            client_rows, client_valid = window(client_members.order, *inside, client_wide)
        own_rules = rules.of_class(index, rows, client_rows, client_valid)
        selectable = valid if own_rules.allowed is None else valid & own_rules.allowed
        if metric.name == "precomputed":
            places = (rows, client_rows, client_valid) if count > 1 else None
            oracle: Oracle = _matrix_oracle(candidates.parts[0], places, own_rules.weights)
        else:
            own = metrics.take_rows(candidates, rows)
            theirs = None if clients is None else metrics.take_rows(clients, client_rows)
            oracle = oracle_of(metric, own, theirs, client_valid, top, own_rules)
        quota = quotas[index]
        if settings.draws:
            run = stochastic_greedy(
                oracle, selectable, quota, settings.rounds, settings.draws,
                jax.random.fold_in(key, index), own_rules,
            )  # fmt: skip
        elif settings.pending:
            assert isinstance(oracle, PointOracle)
            run = push_greedy(oracle, selectable, quota, settings.rounds, settings.pending)
        else:
            form = settings.rounds, settings.capacity, own_rules
            run = lazy_greedy(oracle, selectable, quota, *form)
        largest = largest.at[index].set(jnp.where(quota > 0, run.top, 0.0))
        place = index, firsts[index]
        return _write(chosen, run, rows, client_rows, client_valid, place, same), largest

    empty = Chosen(
        picks=jnp.zeros(settings.size + settings.rounds, jnp.int32),
        gains=jnp.zeros(settings.size + settings.rounds, jnp.float32),
        nearest=jnp.full(num_clients, -1, jnp.int32),
        top=jnp.float32(0),
        taken=jnp.zeros(count, jnp.int32),
    )
    start = (empty, jnp.zeros(count, jnp.float32))
    if count == 1:
        chosen, largest = one_class(jnp.int32(0), start)
    else:
        chosen, largest = jax.lax.fori_loop(np.int32(0), np.int32(count), one_class, start)
    gains, top = chosen.gains, jnp.max(largest)
    if metric.name != "precomputed":
        # One similarity for all classes: the largest dissimilarity within any of them minus u.
        lift = (top - largest) * client_members.counts.astype(jnp.float32)
        gains = gains.at[jnp.where(quotas > 0, firsts, gains.shape[0])].add(lift, mode="drop")
    return chosen._replace(picks=chosen.picks[: settings.size], gains=gains[: settings.size], top=top)


# The same, compiled, for calls from outside ``jit``.
choose_by_class_compiled = jit_wide(choose_by_class, static_argnames="settings")


def _write(
    chosen: Chosen,
    run: Run,
    rows: Array,
    client_rows: Array,
    client_valid: Array,
    place: tuple[Array, Array],
    same: bool,
) -> Chosen:
    """Put the picks of one class in place; what lies beyond its quota is overwritten by the next.

    ``place`` is the number of the class and the slot of its first pick.
    """
    index, first = place
    slots = jnp.arange(run.picks.shape[0], dtype=jnp.int32)
    nearest = run.nearest[: client_rows.shape[0]]
    width = nearest.shape[0]
    if same:  # a pick stands for itself
        places = jnp.where(slots < run.taken, run.picks, width)
        nearest = nearest.at[places].set(slots, mode="drop")
    here = jnp.where(client_valid[:width], client_rows[:width], chosen.nearest.shape[0])
    slot = jnp.where(nearest >= 0, first + nearest, -1)
    return Chosen(
        picks=jax.lax.dynamic_update_slice(chosen.picks, rows[run.picks], (first,)),
        gains=jax.lax.dynamic_update_slice(chosen.gains, run.gains, (first,)),
        nearest=chosen.nearest.at[here].set(slot, mode="drop"),
        top=chosen.top,
        taken=chosen.taken.at[index].set(run.taken),
    )


@partial(jit_wide, static_argnames="settings")
def top_by_class(
    candidates: Points,
    members: Members,
    clients: Points | None,
    client_members: Members,
    quotas: Array,
    *,
    settings: Settings,
) -> Array:
    """Return the largest dissimilarity [] between a client and a candidate of a class with a quota.

    Args:
      candidates: see ``choose_by_class``, as for all that follow.
      members: see there.
      clients: see there.
      client_members: see there.
      quotas: see there.
      settings: see there.
    """
    starts = jnp.cumsum(members.counts, dtype=jnp.int32) - members.counts
    client_starts = jnp.cumsum(client_members.counts, dtype=jnp.int32) - client_members.counts

    def one_class(index: Array, top: Array) -> Array:
        wide = padded(settings.candidate_block)
        rows, valid = window(members.order, starts[index], members.counts[index], wide)
        own = metrics.take_rows(candidates, rows)
        if clients is None:
            found = oracle_of(settings.metric, own, None, valid, None).start()[0]
        else:
            client_rows, client_valid = window(
                client_members.order, client_starts[index], client_members.counts[index],
                padded(settings.client_block),
            )  # fmt: skip
            theirs = metrics.take_rows(clients, client_rows)
            oracle = oracle_of(settings.metric, own, theirs, client_valid, jnp.float32(0))

            def farthest(row: Array) -> Array:
                return jnp.max(jnp.where(client_valid & valid[row], oracle.exact(row), 0.0))

            found = jnp.max(jax.lax.map(farthest, jnp.arange(wide, dtype=jnp.int32)))
        return jnp.maximum(top, jnp.where(quotas[index] > 0, found, 0.0))

    count = np.int32(quotas.shape[0])
    return settings.metric.top(jax.lax.fori_loop(np.int32(0), count, one_class, jnp.float32(0)))


_LOOKS = 6  # picks that may be looked at closely for a row before all are


@partial(jax.jit, static_argnames="metric")
def nearest_picks(
    points: Points, labels: Array, heads: Points, head_labels: Array, metric: Metric
) -> tuple[Array, Array]:
    """Find the nearest pick of each row: of its class, or of any where its class has none.

    Lower bounds of all distances say which picks may be the nearest; direct sums decide, the earlier
    pick on a tie.

    Args:
      points: [n] rows.
      labels: [n], int32.
      heads: [m] rows, the picks.
      head_labels: [m], int32.
      metric: static, any but "precomputed".

    Returns:
      The slot [n], int32, of the nearest pick, and its dissimilarity [n].
    """
    count, width = points.rows, 256
    points, heads = sums.centred(metric, points, heads)
    head_lengths = sums.lengths(metric, heads)
    columns = heads._replace(parts=tuple(part.T for part in heads.parts))

    def blocked(leaf: Array) -> Array:
        return metrics.pad_rows(leaf, -count % width).reshape(-1, width, *leaf.shape[1:])

    def one(block: tuple[Points, Array]) -> tuple[Array, Array]:
        rows, own = block
        match = own[:, None] == head_labels[None, :]
        allowed = match | ~jnp.any(match, axis=1, keepdims=True)
        own_lengths = sums.lengths(metric, rows)
        lower = sums.lower(metric, rows, own_lengths, columns, head_lengths)
        lower = jnp.where(allowed, lower, jnp.inf)
        every = jnp.arange(head_labels.shape[0], dtype=jnp.int32)[None, :]

        def unsettled(state: tuple[Array, ...]) -> Array:
            look, lower, _, best, _ = state
            return (look < _LOOKS) & jnp.any(jnp.min(lower, axis=1) <= best)

        def look_closely(state: tuple[Array, ...]) -> tuple[Array, ...]:
            look, lower, slot, best, _ = state
            found = first_largest(-lower)
            direct = sums.pairs(metric, rows, metrics.take_rows(heads, found))
            direct = jnp.where(jnp.min(lower, axis=1) < jnp.inf, direct, jnp.inf)
            better = (direct < best) | ((direct == best) & (found < slot))
            slot, best = jnp.where(better, found, slot), jnp.where(better, direct, best)
            lower = jnp.where(every == found[:, None], jnp.inf, lower)
            return look + 1, lower, slot, best, jnp.any(jnp.min(lower, axis=1) <= best)

        def look_at_all(slot: Array, best: Array) -> tuple[Array, Array]:
            del slot, best
            tiles = sums.to_tiles(rows, width)
            direct = jax.lax.map(lambda head: sums.to_all(metric, head, tiles)[0], heads).T
            direct = jnp.where(allowed, direct, jnp.inf)
            return first_largest(-direct), jnp.min(direct, axis=1)

        none = jnp.zeros(width, jnp.int32), jnp.full(width, jnp.inf, jnp.float32)
        start: tuple[Array, ...] = (jnp.int32(0), lower, *none, jnp.array(True))
        _, _, slot, best, left = jax.lax.while_loop(unsettled, look_closely, start)
        return jax.lax.cond(left, look_at_all, lambda slot, best: (slot, best), slot, best)

    slots, direct = jax.lax.map(one, (jax.tree.map(blocked, points), blocked(labels)))
    return slots.reshape(-1)[:count], metric.from_sums(direct.reshape(-1)[:count])
