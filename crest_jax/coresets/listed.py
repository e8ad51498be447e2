"""Selection on graphs of similarities: exact lazy greedy on lists, in memory linear in the entries."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.coverage import empty_coreset
from crest_jax.coresets.extras import rules_of, weight_exponents
from crest_jax.coresets.inputs import Pool, make_pool, restored
from crest_jax.coresets.lazy import first_run, lazy_greedy_on_lists
from crest_jax.coresets.lists import Lists
from crest_jax.coresets.metrics import Metric, Points, take_rows
from crest_jax.coresets.nearest import nearest_counts_compiled
from crest_jax.coresets.neighbors import neighbor_graph, plan_neighbors
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.partition import Partition
from crest_jax.coresets.partitioned import coreset_of, counts_at
from crest_jax.coresets.plan import Plan
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.coresets.solve import Problem, unscaled
from crest_jax.coresets.sparse import Graph, graph_of_matrix, plan_sparse, roomy
from crest_jax.types import Array, Coreset


class _Listed(NamedTuple):
    """A choice on a graph."""

    picks: np.ndarray  # [m], int64
    gains: np.ndarray  # [m], float32
    taken: np.ndarray  # [c], picks of each class


def plan_on_graph(
    rows: Any, problem: Problem, neighbors: int | None, memory_budget: int | None
) -> tuple[Plan, int]:
    """Say what a selection needs, and how many rows are compared at once.

    Args:
      rows: a sparse matrix, or embeddings.
      problem: of these.
      neighbors: of each row; None where a matrix is given.
      memory_budget: see ``select_coreset``.

    Raises:
      ValueError: on what cannot be done on a graph.
    """
    shape, extras = problem.shape, problem.extras
    if neighbors is None:
        return plan_sparse(rows, shape.size, memory_budget), 0
    _checks.require(
        extras is None or (extras.earlier is None and extras.others is None),
        f"neighbors is {neighbors} beside initial or candidates that are rows of elsewhere, but the "
        "graph holds the pool only; pass positions in the pool, or leave neighbors out.",
    )
    return plan_neighbors(
        neighbors, shape.rows, shape.width, shape.size, problem.batched, memory_budget
    )


def solve_on_graph(
    rows: Any, problem: Problem, metric: str, gamma: float | None, neighbors: int | None, block: int
) -> Coreset:
    """Choose by lazy greedy on a sparse matrix, or on the graph of neighbours.

    Entries that are absent, or negative, are similarity 0. In a matrix rows to which no pick is similar
    count at all picks in proportion; with neighbours rows count at the nearest of all picks.

    Args:
      rows: see ``plan_on_graph``, as for problem and neighbors.
      problem: see there.
      metric: see ``select_coreset``.
      gamma: see there.
      neighbors: see ``plan_on_graph``.
      block: rows compared at once.
    """
    parts, extras = problem.parts, problem.extras
    if neighbors is None:
        graph, exponent = graph_of_matrix(rows)
        pool = Pool(Points(()), Metric(metric, 1.0), np.array([exponent]), False)
    else:
        pool = make_pool(rows, metric, batched=False, gamma=gamma)
        labels, counts = parts.labels[0], parts.counts[0]
        graph = neighbor_graph(pool.points, pool.metric, labels, counts, neighbors, block)
    rules, each, shift = NO_RULES, None, np.zeros(1, int)
    if extras is not None:
        shift = weight_exponents(extras, 1)
        pool = pool._replace(exponents=pool.exponents + shift)
        rules = rules_of(extras, parts, pool.exponents, shift).of_problem(0)
        each = None if rules.weights is None else np.asarray(rules.weights, np.float64)
    pickable = None if extras is None or extras.pickable is None else extras.pickable[0]
    floors = _floors(graph, parts, each, pickable)
    rules = rules._replace(floor=jnp.asarray(floors, jnp.float32))
    chosen = choose_listed(graph, parts, rules)
    if rules.units is not None:
        other = choose_listed(graph, parts, rules.without_costs())
        chosen = max(chosen, other, key=lambda one: float(one.gains.sum(dtype=np.float64)))
    mass = float(graph.num_rows) if each is None else float(each.sum())
    if not len(chosen.picks):
        return empty_coreset(
            graph.num_rows, jnp.float32(graph.top), rules.weights, jnp.float32(0), float(floors.sum())
        )
    if neighbors is None:
        weights, assignments = _counted(graph, parts, chosen, each, mass)
    else:
        picks = jnp.asarray(chosen.picks, jnp.int32)
        lost = bool(((chosen.taken == 0) & (parts.counts[0] > 0)).any())
        weights, assignments = nearest_counts_compiled(
            pool.points, jnp.asarray(parts.labels[0]), take_rows(pool.points, picks), picks,
            rules.weights, metric=pool.metric, spread=parts.spread and lost,
        )  # fmt: skip
    objective, largest = float(chosen.gains.sum(dtype=np.float64)), graph.top * mass - floors.sum()
    found = coreset_of(
        chosen.picks, np.asarray(weights), chosen.gains, objective, largest, np.asarray(assignments)
    )
    return restored(unscaled(found, shift, batched=False), pool)


def _entries_of(graph: Graph, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the entries of some candidates [k], one after the other, and whose [0, k) they are."""
    lengths = np.diff(graph.starts)[candidates]
    firsts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(candidates)), lengths)
    return np.arange(len(owners)) + (graph.starts[candidates] - firsts)[owners], owners


def _floors(
    graph: Graph, parts: Partition, each: np.ndarray | None, pickable: np.ndarray | None
) -> np.ndarray:
    """Return what all candidates together leave uncovered in each class [c]; see ``covered_share``."""
    owners = np.repeat(np.arange(len(graph.starts) - 1), np.diff(graph.starts))
    kept = np.ones(len(owners), bool) if pickable is None else pickable[owners]
    labels = np.zeros(graph.num_rows, np.int32)
    if parts.number > 1:
        labels = parts.labels[0]
        kept &= labels[graph.rows] == labels[owners]
    least = np.full(graph.num_rows, graph.top, np.float64)
    np.minimum.at(least, graph.rows[kept], graph.values[kept].astype(np.float64))
    return np.bincount(labels, least if each is None else least * each, minlength=parts.number)


def _counted(
    graph: Graph, parts: Partition, chosen: _Listed, each: np.ndarray | None, mass: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [m] and the assignments [n] by what picks are similar to."""
    size = len(chosen.picks)
    nearest = _most_similar(graph, parts, chosen)
    if graph.num_rows == len(graph.starts) - 1:  # a pick stands for itself
        nearest[chosen.picks] = np.arange(size)
    known = nearest >= 0
    counted = np.ones(known.sum()) if each is None else each[known]
    return counts_at(nearest[known], counted, size, mass), nearest


def _most_similar(graph: Graph, parts: Partition, chosen: _Listed) -> np.ndarray:
    """Return the slot [n] of the pick most similar to each row, the earlier one on a tie; -1 for none.

    Of its class, or of any where given quotas leave its class none.
    """
    places, slots = _entries_of(graph, chosen.picks)
    rows, values = graph.rows[places], graph.values[places]
    if parts.number > 1:
        labels = parts.labels[0]
        allowed = labels[rows] == labels[chosen.picks[slots]]
        if not parts.spread:
            allowed |= chosen.taken[labels[rows]] == 0
        rows, values, slots = rows[allowed], values[allowed], slots[allowed]
    order = np.lexsort((slots, values, rows))
    rows, slots = rows[order], slots[order]
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    nearest = np.full(graph.num_rows, -1, np.int64)
    nearest[rows[first]] = slots[first]
    return nearest


def choose_listed(graph: Graph, parts: Partition, rules: Rules = NO_RULES) -> _Listed:
    """Run lazy greedy on a graph, class by class.

    Args:
      graph: of the pool.
      parts: its classes and their quotas.
      rules: of one problem.

    Returns:
      Picks [m], their gains [m], float32, and how many are of each class [c].

    Example:
      >>> from crest_jax.coresets.partition import partition
      >>> from crest_jax.coresets.sparse import graph_of_entries
      >>> rows, candidates, values = np.array([0, 1]), np.array([0, 1]), np.float32([-1, -2])
      >>> graph = graph_of_entries(rows, candidates, values, 2, 2, 0.0)
      >>> found = choose_listed(graph, partition(None, (2,), 1, "proportional", None))
      >>> found.picks.tolist(), found.gains.tolist()
      ([1], [2.0])
    """
    quotas, counts = parts.quotas[0], parts.counts[0]
    if parts.number == 1:
        own = rules.of_class(0, slice(None), slice(None), True)
        sizes = len(graph.starts) - 1, graph.num_rows, len(graph.rows), int(quotas[0])
        picks, gains = _run(graph, int(quotas[0]), own, *sizes)
        return _Listed(picks, gains, np.array([len(picks)]))
    labels = parts.labels[0]
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    places, owners = _entries_of(graph, order)
    kept = labels[graph.rows[places]] == labels[order[owners]]
    places, owners = places[kept], owners[kept]
    rows, values = rank[graph.rows[places]], graph.values[places]
    ends = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(order)))])
    firsts = np.cumsum(counts) - counts
    most = int(counts.max())
    longest = max(int(ends[f + c] - ends[f]) for f, c in zip(firsts, counts, strict=True))
    picks, gains = np.zeros(0, np.int64), np.zeros(0, np.float32)
    taken = np.zeros(len(counts), int)
    for label in np.flatnonzero(quotas):
        first, count = int(firsts[label]), int(counts[label])
        own_rows = order[first : first + count]
        inside = slice(int(ends[first]), int(ends[first + count]))
        starts = ends[first : first + count + 1] - ends[first]
        near = (rows[inside] - first).astype(np.int32)
        part = Graph(near, values[inside], starts, count, graph.top)
        own = rules.of_class(label, own_rows, own_rows, True)
        found = _run(part, int(quotas[label]), own, most, most, longest, int(quotas.max()))
        picks, gains = np.append(picks, own_rows[found[0]]), np.append(gains, found[1])
        taken[label] = len(found[0])
    return _Listed(picks, gains, taken)


def _run(
    graph: Graph, quota: int, rules: Rules, candidates: int, rows: int, entries: int, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run on a graph padded to so many candidates, rows and entries."""
    lengths = np.diff(graph.starts)
    wide, high, capacity = padded(candidates), padded(rows), roomy(entries)
    similarities = graph.top - graph.values.astype(np.float64)
    if rules.weights is not None:
        similarities *= np.asarray(rules.weights, np.float64)[graph.rows]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    first = np.bincount(owners, similarities, minlength=len(lengths))
    if rules.allowed is not None:
        first = np.where(np.asarray(rules.allowed), first, -1.0)

    def filled(values: Any, count: int, fill: float, kind: Any) -> Array:
        values = np.asarray(values)
        return jnp.asarray(np.pad(values, (0, count - len(values)), constant_values=fill).astype(kind))

    lists = Lists(
        filled(graph.rows, capacity, 0, np.int32),
        filled(graph.values, capacity, 0, np.float32),
        filled(graph.starts[:-1], wide, 0, np.int32),
        filled(lengths, wide, 0, np.int32),
    )
    rules = rules._replace(
        weights=None if rules.weights is None else filled(rules.weights, high, 0.0, np.float32),
        allowed=None,
        costs=None if rules.costs is None else filled(rules.costs, wide, 1.0, np.float32),
        units=None if rules.units is None else filled(rules.units, wide, 0, np.int32),
        floor=None if rules.floor is None else jnp.float32(rules.floor),
    )
    cover = np.full(graph.num_rows, graph.top)
    size = min(candidates, -(-rounds // 32) * 32)
    picks, gains, taken = _greedy(
        lists, filled(first, wide, -1.0, np.float32), filled(cover, high, -np.inf, np.float32),
        jnp.int32(quota), rules, size=size,
    )  # fmt: skip
    count = int(taken)
    return np.asarray(picks)[:count].astype(np.int64), np.asarray(gains)[:count]


@partial(jax.jit, static_argnames="size")
def _greedy(
    lists: Lists, first: Array, cover: Array, quota: Array, rules: Rules, *, size: int
) -> tuple[Array, Array, Array]:
    """Choose from lists, cover [n] and the gains [m] of first picks; -1 for none to pick."""
    run = first_run(jnp.max(cover), cover, first, first >= 0, quota, size, rules)
    run = lazy_greedy_on_lists(lists, run, rules.weights, rules)
    return run.picks, run.gains, run.taken
