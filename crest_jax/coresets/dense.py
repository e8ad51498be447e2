"""Selection on stored similarities: the classes of many problems as one batch of small groups."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets import metrics
from crest_jax.coresets.by_class import nearest_picks
from crest_jax.coresets.compiling import jit_wide
from crest_jax.coresets.coverage import coverage_counts, covered_share, empty_coreset, scaled_up
from crest_jax.coresets.grouped import GroupPicks, assigned, dissimilarities, greedy_in_groups
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.nearest import nearest_counts
from crest_jax.coresets.partition import Partition
from crest_jax.coresets.plan import dense_sides
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.data.strata import compact
from crest_jax.types import Array, Coreset


def choose_dense(
    points: Points,
    partition: Partition,
    *,
    size: int,
    metric: Metric,
    batched: bool,
    at_once: int,
    rules: Rules = NO_RULES,
    top: Array | None = None,
) -> Coreset:
    """Solve ``p`` problems, some at a time.

    Args:
      points: leaves [p, n, ...], or [n, ...] if not ``batched``; for the metric "precomputed" one
        part, similarities.
      partition: the classes and their quotas, summing to ``size``.
      size: picks of each problem.
      metric: of the points.
      batched: whether there is a leading axis of problems; if not, ``p = 1`` and the result has none.
      at_once: problems in one program.
      rules: leaves [p, ...]; those that end a choice, for one problem only.
      top: [], dissimilarity at which the similarity is 0; None for the largest between a row and a
        candidate of its class.

    Returns:
      As ``select_coreset``; fewer picks than ``size`` where rules end the choice.
    """
    labels, counts, quotas, spread = partition
    problems, classes = counts.shape
    order = np.argsort(compact(labels, classes), axis=1, kind="stable").astype(np.int32)
    # Rounded up, so that data of the same shape shares one compiled program.
    clients, side = dense_sides(int(counts.max()))
    rounds = -(-int(quotas.max()) // 4) * 4
    blocks = -(-problems // at_once)
    sizes = np.stack([counts, quotas]).astype(np.int32)
    # Separate programs: compiled as one, XLA repeats the gathering in every use.
    grouping = {"side": side, "blocks": blocks, "metric": metric, "batched": batched}
    rows, parts = _group(points, order, sizes, rules, **grouping)
    found = [_best(part, top, clients=clients, rounds=rounds, metric=metric) for part in parts]
    if rules.least is not None or rules.share is not None:
        sizes[1] = np.asarray(found[0].picks.taken)
        size = int(sizes[1].sum())
        if size == 0:
            each = None if rules.weights is None else rules.weights[0]
            return empty_coreset(
                labels.shape[1], found[0].top[0], each, found[0].start[0], found[0].floor[0]
            )
    orphans = bool(((sizes[1] == 0) & (counts > 0)).any())
    needed = (orphans and not spread) or metric.signed
    own = jnp.asarray(labels) if needed else None
    form = {"size": size, "metric": metric, "batched": batched, "spread": orphans and spread}
    return _ungroup(points, own, rows, found, sizes, rules.weights, rules.earlier, **form)


class _Solved(NamedTuple):
    picks: GroupPicks
    top: Array  # [b], dissimilarity at which the similarity is 0, of each problem
    floor: Array  # [b], see ``covered_share``
    start: Array  # [b], what rows of elsewhere cover


def _best(part: tuple[Points, Array, Array, Rules], top: Array | None, **form: Any) -> _Solved:
    """Solve a block; with costs twice, once by gains alone, and return the better choice."""
    *problem, rules = part
    if rules.units is None:
        return _solve(*problem, rules, top, **form)
    both = [_solve(*problem, each, top, **form) for each in (rules, rules.without_costs())]
    values = [float(jnp.sum(_made(each.picks))) for each in both]
    return both[int(values[1] > values[0])]


def _made(picks: GroupPicks) -> Array:
    """Gains [g, rounds] of the picks that were made, 0 beyond."""
    turns = jnp.arange(picks.gains.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(turns < picks.taken[:, None], picks.gains, 0.0)


@partial(jax.jit, static_argnames=("side", "blocks", "metric", "batched"))
def _group(
    points: Points,
    order: Array,
    sizes: Array,
    rules: Rules,
    *,
    side: int,
    blocks: int,
    metric: Metric,
    batched: bool,
) -> tuple[Array, list[tuple[Points, Array, Array, Rules]]]:
    """Sort by class: rows [p, c * side], and the blocks that ``_solve`` takes."""
    if not batched:
        points = jax.tree.map(lambda x: x[None], points)
    counts, quotas = sizes
    problems, classes = counts.shape
    starts = jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    # Places beyond a class repeat its last row, which changes no largest dissimilarity.
    inside = jnp.minimum(jnp.arange(side, dtype=jnp.int32)[None, None, :], counts[:, :, None] - 1)
    places = jnp.maximum(starts[:, :, None] + inside, 0).reshape(problems, -1)
    rows = jnp.take_along_axis(order, places, axis=1)
    step = -(-problems // blocks)
    found = []
    for first in range(0, problems, step):
        block = slice(first, first + step)
        own = rows[block]
        pool = jax.tree.map(lambda x, block=block: x[block], points)
        if metric.name == "precomputed":
            of_class = jax.vmap(lambda matrix, own: matrix[own][:, own], in_axes=(None, 0))
            matrix = jax.vmap(of_class)(pool.parts[0], own.reshape(-1, classes, side))
            grouped = Points((matrix.reshape(-1, side, side),))
        else:
            offsets = jnp.arange(len(own), dtype=jnp.int32)[:, None] * order.shape[1]
            flat = (own + offsets).reshape(-1)
            pool = jax.tree.map(lambda x, flat=flat: x.reshape(-1, *x.shape[2:])[flat], pool)
            grouped = Points(
                tuple(part.reshape(-1, side, part.shape[1]).transpose(2, 0, 1) for part in pool.parts),
                None if pool.blank is None else pool.blank.reshape(-1, side),
            )
        whole = {"budget", "least", "share"}
        apart = {
            name: leaf if leaf is None or name in whole else leaf[block]
            for name, leaf in rules._asdict().items()
        }
        found.append((grouped, counts[block], quotas[block], Rules(**apart).by_group(own, classes)))
    return rows, found


@partial(jit_wide, static_argnames=("clients", "rounds", "metric"))
def _solve(
    points: Points,
    counts: Array,
    quotas: Array,
    rules: Rules,
    top: Array | None,
    *,
    clients: int,
    rounds: int,
    metric: Metric,
) -> _Solved:
    sizes, problems = counts.reshape(-1), len(counts)
    candidates = rules.candidates()
    if metric.name == "precomputed":
        matrix = points.parts[0]
        if metric.symmetric:
            values = -matrix[:, :clients].transpose(1, 0, 2)
        else:
            values = -matrix[:, :, :clients].transpose(2, 0, 1)
        level = jnp.zeros(problems, jnp.float32)
    else:
        values = dissimilarities(metric, points, clients)
        if top is None:
            own = values if candidates is None else jnp.where(candidates[None], values, 0.0)
            largest = jnp.max(jnp.max(own, axis=0), axis=1).reshape(counts.shape)
            level = metric.top(jnp.max(jnp.where(quotas > 0, largest, 0.0), axis=1))
        else:
            level = jnp.broadcast_to(top, problems)
    tops = jnp.broadcast_to(level[:, None], counts.shape).reshape(-1)
    floors = jnp.zeros(len(sizes), jnp.float32)
    place = jnp.arange(values.shape[2], dtype=jnp.int32)[None, :]
    member = place < sizes[:, None]
    each = member.astype(jnp.float32) if rules.weights is None else member * rules.weights
    if candidates is not None or metric.signed:
        can = member if candidates is None else member & candidates
        least = jnp.min(jnp.where(can[None], values, jnp.inf), axis=2).T  # [g, k]
        least = jnp.minimum(least, tops[:, None])
        if rules.earlier is not None:
            least = jnp.minimum(least, rules.earlier[:, :clients])
        floors = jnp.sum(least * each[:, :clients], axis=1)
    start = jnp.zeros(len(sizes), jnp.float32)
    if rules.earlier is not None:
        start = jnp.sum(each * jnp.maximum(tops[:, None] - rules.earlier, 0.0), axis=1)
    rules = rules._replace(floor=floors)
    found = greedy_in_groups(
        values, sizes, quotas.reshape(-1), tops, rounds, rules, symmetric=metric.symmetric
    )
    floors, start = (jnp.sum(x.reshape(counts.shape), axis=1) for x in (floors, start))
    return _Solved(found, level, floors, start)


@partial(jax.jit, static_argnames=("size", "metric", "batched", "spread"))
def _ungroup(
    points: Points,
    labels: Array | None,
    rows: Array,
    blocks: list[_Solved],
    sizes: Array,
    each: Array | None,
    earlier: Array | None,
    *,
    size: int,
    metric: Metric,
    batched: bool,
    spread: bool,
) -> Coreset:
    """Line up the picks of each problem, class by class; labels [p, n] where weights need them.

    ``each`` [p, n] is what rows count, ``earlier`` [p, n] how far they are from rows of elsewhere.
    """
    if not batched:
        points = jax.tree.map(lambda x: x[None], points)
    solved = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *blocks)
    found, (counts, quotas) = solved.picks, sizes
    problems, classes = quotas.shape
    rounds = found.places.shape[1]
    side = rows.shape[1] // classes
    ends = jnp.cumsum(quotas, axis=1, dtype=jnp.int32)
    slots = jnp.arange(size, dtype=jnp.int32)[None, :]
    label = jnp.sum(slots[:, :, None] >= ends[:, None, :], axis=2, dtype=jnp.int32)
    round_ = slots - jnp.take_along_axis(ends - quotas, label, axis=1)

    def lined_up(result: Array) -> Array:
        wide = result.reshape(problems, classes * rounds)
        return jnp.take_along_axis(wide, label * rounds + round_, axis=1)

    picks = jnp.take_along_axis(rows, label * side + lined_up(found.places), axis=1)
    gains, weights = lined_up(found.gains), lined_up(found.weights)
    count = points.parts[0].shape[1]
    first = jnp.arange(problems, dtype=jnp.int32).repeat(classes)[:, None] * count
    member = jnp.arange(side, dtype=jnp.int32)[None, :] < counts.reshape(-1, 1)
    starts = (ends - quotas).reshape(-1)
    # Beyond the picks that were made there is garbage.
    nearest = jnp.where(quotas.reshape(-1, 1) > 0, found.nearest, -1)
    flat = assigned(nearest, rows.reshape(-1, side) + first, member, starts, problems * count)
    assignments = flat.reshape(problems, count)
    mass = jnp.full(problems, float(count)) if each is None else jnp.sum(each, axis=1)
    if labels is not None and metric.name == "precomputed":
        # Negative similarities improve nobody, but still say which pick is nearest.
        counted = partial(coverage_counts, spread=spread)
        weights, assignments = jax.vmap(lambda s, *own: counted(-s.T, *own))(
            points.parts[0], labels, picks, *(() if each is None else (each,))
        )
    elif labels is not None and metric.signed:
        look = partial(nearest_counts, metric=metric, spread=spread)
        weights, assignments = jax.lax.map(
            lambda own: look(own[0], own[1], metrics.take_rows(own[0], own[2]), *own[2:]),
            (points, labels, picks, each, earlier),
        )
    elif labels is not None:
        more, slots = _orphans(points, labels, picks, each, metric, classes)
        weights, assignments = weights + more, jnp.where(assignments >= 0, assignments, slots)
    elif spread:
        weights = jax.vmap(scaled_up)(weights, mass)
    objective = jnp.sum(gains, axis=1) + solved.start
    share = covered_share(objective, solved.top, mass, solved.floor)
    coreset = Coreset(picks, weights, gains, objective, assignments, share)
    return coreset if batched else jax.tree.map(lambda x: x[0], coreset)


def _orphans(
    points: Points, labels: Array, picks: Array, each: Array | None, metric: Metric, classes: int
) -> tuple[Array, Array]:
    """Rows of classes without a pick at the nearest pick of any class: weights [p, m], slots [p, n]."""

    def one(args: tuple[Points, Array, Array, Array]) -> tuple[Array, Array]:
        rows, own, heads, masses = args
        slots, _ = nearest_picks(rows, own, metrics.take_rows(rows, heads), own[heads], metric)
        has_pick = jnp.zeros(classes, bool).at[own[heads]].set(True)
        counted = jnp.where(has_pick[own], 0.0, masses)
        return jnp.zeros(heads.shape[0], jnp.float32).at[slots].add(counted), slots

    each = jnp.ones(labels.shape, jnp.float32) if each is None else each
    return jax.lax.map(one, (points, labels, picks, each))
