"""Selection class by class: greedy runs over windows of rows sorted by class, in one program."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import metrics
from crest_jax.compiling import jit_wide
from crest_jax.lazy_greedy import Run, lazy_greedy, stochastic_greedy
from crest_jax.oracles import MatrixOracle, Oracle, PointOracle, gains_of, padded
from crest_jax.types import Array, PyTree


class Members(NamedTuple):
    """Rows sorted by class."""

    order: Array  # [n], int32, the rows of class 0 first
    counts: Array  # [c], int32


class Settings(NamedTuple):
    """Static settings of ``choose_by_class``."""

    size: int  # picks in all
    rounds: int  # largest quota of a class
    candidate_block: int  # largest number of candidates in a class
    client_block: int  # largest number of clients in a class
    metric: str
    capacity: int  # entries of the lists of lazy greedy
    draws: int  # candidates per pick of stochastic greedy; 0 means lazy greedy


class Chosen(NamedTuple):
    """What ``choose_by_class`` returns."""

    picks: Array  # [size], int32, candidate rows, class by class
    gains: Array  # [size], float32
    nearest: Array  # [n], int32, slot of the nearest pick of each client; -1 in a class without one
    top: Array  # [], float32, dissimilarity at which the similarity is 0


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


def choose_by_class(
    candidates: PyTree,
    members: Members,
    clients: PyTree,
    client_members: Members,
    quotas: Array,
    top: Array,
    key: Array,
    *,
    settings: Settings,
) -> Chosen:
    """Run one greedy choice in each class.

    Args:
      candidates: [m, d] or ``Factored``; for the metric "precomputed" similarities [n, n].
      members: the candidates by class.
      clients: what is to be covered, in the same form, or None when these are the candidates.
      client_members: the clients by class.
      quotas: [c], int32, picks of each class.
      top: [], float32, dissimilarity at which the similarity is 0; NaN for the largest one in a class.
      key: PRNG key, for stochastic greedy.
      settings: see ``Settings``.
    """
    same = clients is None
    matrix = settings.metric == "precomputed"
    metric = metrics.make_metric(settings.metric, candidates)
    num_clients = client_members.order.shape[0]
    count = quotas.shape[0]
    firsts = jnp.cumsum(quotas) - quotas
    starts = jnp.cumsum(members.counts) - members.counts
    client_starts = jnp.cumsum(client_members.counts) - client_members.counts
    wide, client_wide = padded(settings.candidate_block), padded(settings.client_block)

    def window(order: Array, start: Array, count: Array, width: int) -> tuple[Array, Array]:
        places = jnp.arange(width)
        return order[jnp.minimum(start + places, order.shape[0] - 1)], places < count

    def one_class(index: Array, state: tuple[Chosen, Array]) -> tuple[Chosen, Array]:
        chosen, largest = state
        rows, valid = window(members.order, starts[index], members.counts[index], wide)
        client_rows, client_valid = rows, valid
        if not same:
            client_rows, client_valid = window(
                client_members.order, client_starts[index], client_members.counts[index], client_wide
            )
        oracle: Oracle
        if matrix:
            inside = candidates.astype(jnp.float32) if count == 1 else None
            if inside is None:
                inside = candidates[rows][:, rows].astype(jnp.float32)
                inside = jnp.where(client_valid[None, :], inside, -jnp.inf)
            oracle = MatrixOracle(inside)
        else:
            points = metrics.make_points(jax.tree.map(lambda x: x[rows], candidates), settings.metric)
            client_points = points
            if not same:
                # One shift for both sides: the difference of two rows must not change.
                points = metrics.as_float32(
                    jax.tree.map(lambda x: x[rows], candidates), settings.metric
                )
                client_points = metrics.as_float32(
                    jax.tree.map(lambda x: x[client_rows], clients), settings.metric
                )
            oracle = PointOracle(metric, points, client_points, client_valid)
        quota = quotas[index]
        if settings.draws:
            run = stochastic_greedy(
                oracle, valid, quota, settings.rounds, settings.draws, jax.random.fold_in(key, index)
            )
        else:
            run = lazy_greedy(oracle, valid, quota, settings.rounds, settings.capacity)
        gains = run.gains
        if not matrix:
            assert isinstance(oracle, PointOracle)
            ceiling = jnp.where(jnp.isnan(top), oracle.largest(run.end), top) if same else top
            level = jnp.where(client_valid, metric.top(ceiling), -jnp.inf)
            gains = gains.at[0].set(gains_of(level, oracle.exact(run.picks[0])[None, :])[0])
            largest = largest.at[index].set(jnp.where(quota > 0, metric.top(ceiling), 0.0))
        return _write(
            chosen, run, gains, rows, client_rows, client_valid, quota, firsts[index], same
        ), largest

    empty = Chosen(
        picks=jnp.zeros(settings.size + settings.rounds, jnp.int32),
        gains=jnp.zeros(settings.size + settings.rounds, jnp.float32),
        nearest=jnp.full(num_clients, -1, jnp.int32),
        top=jnp.float32(0),
    )
    start = (empty, jnp.zeros(count, jnp.float32))
    if count == 1:
        chosen, largest = one_class(jnp.int32(0), start)
    else:
        chosen, largest = jax.lax.fori_loop(0, count, one_class, start)
    gains = chosen.gains
    if not matrix:
        # One similarity for all classes: the largest dissimilarity within any of them minus u.
        lift = (jnp.max(largest) - largest) * client_members.counts
        slots = jnp.where(quotas > 0, firsts, gains.shape[0])
        gains = gains.at[slots].add(lift, mode="drop")
    return chosen._replace(
        picks=chosen.picks[: settings.size], gains=gains[: settings.size], top=jnp.max(largest)
    )


# The same, compiled, for calls from outside ``jit``.
choose_by_class_compiled = jit_wide(choose_by_class, static_argnames="settings")


def _write(
    chosen: Chosen,
    run: Run,
    gains: Array,
    rows: Array,
    client_rows: Array,
    client_valid: Array,
    quota: Array,
    first: Array,
    same: bool,
) -> Chosen:
    """Put the picks of one class in place; what lies beyond its quota is overwritten by the next."""
    slots = jnp.arange(run.picks.shape[0], dtype=jnp.int32)
    nearest = run.nearest[: client_rows.shape[0]]
    width = nearest.shape[0]
    if same:  # a pick stands for itself
        places = jnp.where(slots < quota, run.picks, width)
        nearest = nearest.at[places].set(slots, mode="drop")
    here = jnp.where(client_valid[:width], client_rows[:width], chosen.nearest.shape[0])
    slot = jnp.where(nearest >= 0, first + nearest, -1)
    return Chosen(
        picks=jax.lax.dynamic_update_slice(chosen.picks, rows[run.picks], (first,)),
        gains=jax.lax.dynamic_update_slice(chosen.gains, gains, (first,)),
        nearest=chosen.nearest.at[here].set(slot, mode="drop"),
        top=chosen.top,
    )


@partial(jax.jit, static_argnames="metric_name")
def nearest_picks(
    embeddings: PyTree, labels: Array, picks: PyTree, pick_labels: Array, *, metric_name: str
) -> tuple[Array, Array]:
    """Find the nearest pick of each row: of its class, or of any where its class has none.

    Args:
      embeddings: [n, d] or ``Factored``.
      labels: [n], int32.
      picks: [m, d] or ``Factored``, in the same form.
      pick_labels: [m], int32.
      metric_name: one of ``metrics.METRICS`` except "precomputed".

    Returns:
      The slot [n], int32, of the nearest pick, and its dissimilarity [n].
    """
    metric = metrics.make_metric(metric_name, embeddings)
    rows = metrics.as_float32(embeddings, metric_name)
    heads = metrics.as_float32(picks, metric_name)
    head_lengths = metrics.squared_lengths(heads)
    columns = metrics.Points(tuple(part.T for part in heads.parts))
    width = 256
    padding = -rows.rows % width
    blocks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, width, x.shape[1]), rows.parts
    )
    label_blocks = jnp.pad(labels, (0, padding)).reshape(-1, width)

    def one(block: tuple[tuple[Array, ...], Array]) -> tuple[Array, Array]:
        points, own = metrics.Points(block[0]), block[1]
        lower = metrics.lower_squared(points, metrics.squared_lengths(points), columns, head_lengths)
        match = own[:, None] == pick_labels[None, :]
        allowed = match | ~jnp.any(match, axis=1, keepdims=True)
        slot = jnp.argmin(jnp.where(allowed, lower, jnp.inf), axis=1).astype(jnp.int32)
        return slot, metrics.squared_pairs(points, metrics.take_rows(heads, slot))

    slots, squared = jax.lax.map(one, (blocks, label_blocks))
    count = rows.rows
    return slots.reshape(-1)[:count], metric.from_squared(squared.reshape(-1)[:count])
