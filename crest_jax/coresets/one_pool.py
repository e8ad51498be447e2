"""Lazy and stochastic greedy on one pool, class by class, and what its picks stand for."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets import metrics
from crest_jax.coresets.by_class import (
    Chosen,
    Members,
    Settings,
    choose_by_class_compiled,
    nearest_picks,
    sorted_on_host,
    top_by_class,
)
from crest_jax.coresets.coverage import (
    best_similarities,
    coverage_counts,
    covered_share,
    empty_coreset,
    scaled_up,
)
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.plan import Plan
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.types import Array, Coreset

# Where examples of classes without a pick count: there are none, at the nearest pick, at all alike.
Orphans = Literal["none", "nearest", "spread"]


class Candidates(NamedTuple):
    """Candidates that are not simply the rows of the pool.

    Attributes:
      points: [k] rows.
      labels: [k], int32, their classes.
      positions: [k], their rows in the pool, rising; None: they lie elsewhere.
    """

    points: Points
    labels: np.ndarray
    positions: np.ndarray | None


class _Problem(NamedTuple):
    """What ``choose_by_class`` takes."""

    points: Points
    members: Members
    clients: Points | None
    client_members: Members
    quotas: Array
    settings: Settings


def choose_in_pool(
    points: Points,
    labels: np.ndarray,
    counts: np.ndarray,
    quotas: np.ndarray,
    *,
    size: int,
    metric: Metric,
    plan: Plan,
    spread: bool,
    key: Array,
    rules: Rules = NO_RULES,
    candidates: Candidates | None = None,
) -> Coreset:
    """Select from one pool by lazy or stochastic greedy.

    Args:
      points: [n] rows.
      labels: [n], int32.
      counts: [c], examples of each class.
      quotas: [c], picks of each class, summing to ``size``.
      size: picks in all.
      metric: of the points.
      plan: the method and its settings.
      spread: see ``Partition``.
      key: PRNG key, for stochastic greedy.
      rules: their ``floor`` is not needed.
      candidates: None: the rows of the pool.

    Returns:
      As ``select_coreset``; fewer picks than ``size`` where rules end the choice.
    """
    problem = _problem(points, labels, counts, quotas, size, metric, plan, candidates)
    several = len(counts) > 1 and any(rule is not None for rule in rules)
    top = None
    if metric.name != "precomputed" and (candidates is not None or several):
        *sides, settings = problem
        top = top_by_class(*sides, settings=settings._replace(size=0, rounds=0, capacity=0, draws=0))
    floor = None
    if candidates is not None or rules.allowed is not None or rules.share is not None:
        floor = _floors(problem, jnp.asarray(labels), metric, rules, candidates, top)
        rules = rules._replace(floor=floor)
    chosen = _chosen(problem, top, key, rules)
    taken, picks, gains, nearest = quotas, chosen.picks, chosen.gains, chosen.nearest
    if rules.least is not None or rules.share is not None:
        taken = np.asarray(chosen.taken)
        picks, gains, nearest = _shortened(chosen, quotas, taken)
    if candidates is not None and candidates.positions is not None:
        picks = jnp.asarray(candidates.positions, jnp.int32)[picks]
        nearest = nearest.at[picks].set(jnp.arange(len(picks), dtype=jnp.int32))
    start = None
    if rules.earlier is not None:
        each = jnp.maximum(chosen.top - rules.earlier, 0.0)
        start = jnp.sum(each if rules.weights is None else each * rules.weights)
    if not len(picks):
        none, bottom = jnp.float32(0), 0.0 if floor is None else jnp.sum(floor)
        covered = none if start is None else start
        return empty_coreset(len(labels), chosen.top, rules.weights, covered, bottom)
    lost = bool(((taken == 0) & (counts > 0)).any())
    orphans: Orphans = ("spread" if spread else "nearest") if lost else "none"
    return _weighted_compiled(
        points, jnp.asarray(labels), picks, gains, nearest, chosen.top, metric, orphans,
        rules.weights, floor, start,
    )  # fmt: skip


def _problem(
    points: Points,
    labels: np.ndarray,
    counts: np.ndarray,
    quotas: np.ndarray,
    size: int,
    metric: Metric,
    plan: Plan,
    candidates: Candidates | None,
) -> _Problem:
    # Rounded up, so that classes of nearly the same sizes share one compiled program.
    block = min(len(labels), padded(int(counts.max())))
    rounds = min(size, -(-int(quotas.max()) // 32) * 32)
    members, wanted = sorted_on_host(labels, counts), jnp.asarray(quotas, jnp.int32)
    settings = Settings(size, rounds, block, block, metric, plan.capacity, plan.draws)
    if candidates is None:
        return _Problem(points, members, None, members, wanted, settings)
    own_counts = np.bincount(candidates.labels, minlength=len(counts))
    own = sorted_on_host(candidates.labels, own_counts)
    own_block = min(len(candidates.labels), padded(int(own_counts.max())))
    settings = settings._replace(candidate_block=own_block)
    return _Problem(candidates.points, own, points, members, wanted, settings)


def _chosen(problem: _Problem, top: Array | None, key: Array, rules: Rules) -> Chosen:
    """Choose; with costs twice, once by gains alone, and return the better choice."""
    *sides, settings = problem

    def choose(rules: Rules) -> Chosen:
        return choose_by_class_compiled(*sides, top, key, rules, settings=settings)

    if rules.units is None:
        return choose(rules)
    both = choose(rules), choose(rules.without_costs())
    return max(both, key=lambda chosen: float(jnp.sum(chosen.gains)))


def _shortened(chosen: Chosen, quotas: np.ndarray, taken: np.ndarray) -> tuple[Array, Array, Array]:
    """Return picks, gains and nearest picks without the slots that were not needed."""
    size = int(quotas.sum())
    codes = np.repeat(np.arange(len(quotas)), quotas)
    slots = np.flatnonzero(np.arange(size) - (np.cumsum(quotas) - quotas)[codes] < taken[codes])
    places = np.full(size + 1, -1, np.int32)  # the last one is for -1
    places[slots] = np.arange(len(slots))
    return chosen.picks[slots], chosen.gains[slots], jnp.asarray(places)[chosen.nearest]


def _floors(
    problem: _Problem,
    labels: Array,
    metric: Metric,
    rules: Rules,
    candidates: Candidates | None,
    top: Array | None,
) -> Array:
    """Return what all candidates together leave uncovered in each class [c]; see ``covered_share``."""
    classes = problem.quotas.shape[0]
    if metric.name == "precomputed":
        allowed = rules.allowed
        if allowed is not None and rules.first is not None:
            counts, order = problem.members.counts, problem.members.order
            rows = order[(jnp.cumsum(counts) - counts)[:, None] + rules.first]
            allowed = allowed.at[jnp.where(rules.first >= 0, rows, len(order))].set(True, mode="drop")
        own = labels if classes > 1 else None
        least = -best_similarities(problem.points.parts[0], own, allowed)
    elif candidates is None or problem.clients is None or top is None:
        return jnp.zeros(classes, jnp.float32)
    else:
        codes = jnp.asarray(candidates.labels, jnp.int32)
        _, least = nearest_picks(problem.clients, labels, candidates.points, codes, metric)
        least = jnp.where((problem.members.counts > 0)[labels], jnp.minimum(least, top), top)
        if rules.earlier is not None:
            least = jnp.minimum(least, rules.earlier)
    each = least if rules.weights is None else least * rules.weights
    return jnp.zeros(classes, jnp.float32).at[labels].add(each)


def weighted(
    points: Points,
    labels: Array,
    picks: Array,
    gains: Array,
    nearest: Array,
    top: Array,
    metric: Metric,
    orphans: Orphans,
    each: Array | None = None,
    floor: Array | None = None,
    start: Array | None = None,
) -> Coreset:
    """Count what each pick stands for.

    Args:
      points: [n] rows, or similarities.
      labels: [n], int32.
      picks: [m], int32.
      gains: [m].
      nearest: [n], int32, slot of the nearest pick, -1 where there is none.
      top: [], dissimilarity at which the similarity is 0.
      metric: static.
      orphans: static, where rows of classes without a pick count.
      each: [n], what rows count; None: one each.
      floor: [c], see ``covered_share``; None: every row may be picked.
      start: [], what rows of elsewhere cover; None: there are none.
    """
    mass = float(len(labels)) if each is None else jnp.sum(each)
    objective = jnp.sum(gains) if start is None else jnp.sum(gains) + start
    if metric.name == "precomputed":
        if floor is None:
            best = best_similarities(points.parts[0], labels)
            floor = -(best if each is None else best * each)
        # Negative similarities improve nobody, but still say which pick is nearest.
        counted = coverage_counts(-points.parts[0], labels, picks, each, spread=orphans == "spread")
        share = covered_share(objective, 0.0, mass, jnp.sum(floor))
        return Coreset(picks, counted.weights, gains, objective, counted.assignments, share)
    if orphans == "nearest":
        heads = metrics.take_rows(points, picks)
        slots, _ = nearest_picks(points, labels, heads, labels[picks], metric)
        nearest = jnp.where(nearest >= 0, nearest, slots)
    slots = jnp.where(nearest >= 0, nearest, picks.shape[0])
    one = 1.0 if each is None else each
    weights = jnp.zeros(picks.shape[0], jnp.float32).at[slots].add(one, mode="drop")
    if start is None:
        weights = scaled_up(weights, mass)
    share = covered_share(objective, top, mass, 0.0 if floor is None else jnp.sum(floor))
    return Coreset(picks, weights, gains, objective, nearest, share)


_weighted_compiled = jax.jit(weighted, static_argnames=("metric", "orphans"))
