"""Lazy and stochastic greedy on one pool, class by class, and what its picks stand for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.by_class import (
    Chosen,
    Members,
    Settings,
    choose_by_class_compiled,
    nearest_picks,
    sorted_on_host,
    top_by_class,
)
from crest_jax.coresets.coverage import best_similarities, empty_coreset
from crest_jax.coresets.metrics import Metric, Points, pad_rows, take_rows
from crest_jax.coresets.nearest import Orphans, best_products, weighted_compiled
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.partitioned import coreset_of
from crest_jax.coresets.plan import Plan
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.data.devices import on_accelerator
from crest_jax.types import Array, Coreset


class Candidates(NamedTuple):
    """Candidates that are not simply the rows of the pool.

    Attributes:
      points: [k] rows, or similarities [k, n] of these to the pool.
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
      points: [n] rows; with the metric "precomputed" similarities [k, n] of candidates to rows.
      labels: [n], int32, of the candidates where these are not the rows.
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
    matrix = points.parts[0] if metric.name == "precomputed" else None
    if matrix is not None and matrix.shape[0] != matrix.shape[1]:  # the rows are one class
        candidates = candidates or Candidates(points, labels, None)
        labels, counts = np.zeros(matrix.shape[1], np.int32), np.array([matrix.shape[1]])
    given = points
    if matrix is None and candidates is None:
        # Whole blocks, as the greedy run takes them: a pool of about the same size compiles nothing.
        points = _filled(points, padded(len(labels)) - len(labels))
    problem = _problem(points, labels, counts, quotas, size, metric, plan, candidates)
    several = len(counts) > 1 and any(rule is not None for rule in rules)
    top = None
    if metric.fixed_top is not None:
        top = jnp.float32(metric.fixed_top)
    elif candidates is not None or several:
        *sides, settings = problem
        top = top_by_class(
            *sides, settings=settings._replace(size=0, rounds=0, capacity=0, draws=0, pending=0)
        )
    floor = None
    if candidates is not None or rules.allowed is not None or rules.share is not None:
        floor = _floors(problem, given, jnp.asarray(labels), metric, rules, candidates, top)
        rules = rules._replace(floor=floor)
    chosen = _chosen(problem, top, key, rules)
    taken = quotas
    picks, gains = (np.asarray(x)[:size] for x in (chosen.picks, chosen.gains))
    nearest = np.asarray(chosen.nearest)[: len(labels)]
    if rules.least is not None or rules.share is not None:
        taken = np.asarray(chosen.taken)
        picks, gains, nearest = _shortened(chosen, quotas, taken, len(labels))
    heads = None
    if candidates is not None and candidates.positions is None:
        heads = take_rows(candidates.points, picks)
    elif candidates is not None:
        picks, nearest = np.asarray(candidates.positions, np.int32)[picks], nearest.copy()
        nearest[picks] = np.arange(len(picks))
    if not len(picks):
        covered, bottom = jnp.float32(0), 0.0 if floor is None else jnp.sum(floor)
        if rules.earlier is not None:
            each = jnp.maximum(chosen.top - rules.earlier, 0.0)
            covered = jnp.sum(each if rules.weights is None else each * rules.weights)
        return empty_coreset(len(labels), chosen.top, rules.weights, covered, bottom)
    lost = bool(((taken == 0) & (counts > 0)).any())
    orphans: Orphans = ("spread" if spread else "nearest") if lost else "none"
    if not metric.signed and orphans == "none" and floor is None and rules == NO_RULES:
        # Counted on the host, which compiles nothing.
        weights, objective = np.bincount(nearest, minlength=size), gains.sum(dtype=np.float64)
        largest = float(chosen.top) * len(labels)
        return coreset_of(picks, weights, gains, objective, largest, nearest)
    return weighted_compiled(
        given, jnp.asarray(labels), picks, gains, nearest, chosen.top, metric, orphans,
        rules.weights, floor, rules.earlier, heads,
    )  # fmt: skip


def _filled(points: Points, count: int) -> Points:
    """Append rows of zeros; on a CPU by NumPy, which compiles nothing."""
    if on_accelerator(points):
        return pad_rows(points, count)

    def longer(leaf: Any) -> np.ndarray:
        return np.pad(np.asarray(leaf), ((0, count), *[(0, 0)] * (leaf.ndim - 1)))

    return jax.tree.map(longer, points)


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
    # Rounded up, so that pools and classes of nearly the same sizes share one compiled program.
    block, rounds = padded(int(counts.max())), -(-int(quotas.max()) // 32) * 32
    size = -(-size // 32) * 32
    fill = points.rows - len(labels) if candidates is None and metric.name != "precomputed" else 0
    members, wanted = sorted_on_host(labels, counts, fill), jnp.asarray(quotas, jnp.int32)
    settings = Settings(size, rounds, block, block, metric, plan.capacity, plan.draws, plan.pending)
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


def _shortened(
    chosen: Chosen, quotas: np.ndarray, taken: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return picks, gains and nearest picks without the slots that were not needed."""
    size = int(quotas.sum())
    codes = np.repeat(np.arange(len(quotas)), quotas)
    slots = np.flatnonzero(np.arange(size) - (np.cumsum(quotas) - quotas)[codes] < taken[codes])
    places = np.full(size + 1, -1, np.int32)  # the last one is for -1
    places[slots] = np.arange(len(slots))
    picks, gains = np.asarray(chosen.picks)[slots], np.asarray(chosen.gains)[slots]
    return picks, gains, places[np.asarray(chosen.nearest)[:count]]


def _floors(
    problem: _Problem,
    points: Points,
    labels: Array,
    metric: Metric,
    rules: Rules,
    candidates: Candidates | None,
    top: Array | None,
) -> Array:
    """Return what all candidates together leave uncovered in each class [c]; see ``covered_share``."""
    classes = problem.quotas.shape[0]
    codes = labels if candidates is None else jnp.asarray(candidates.labels, jnp.int32)
    if metric.name == "precomputed":
        own = (labels, codes) if classes > 1 else (None, None)
        least = -best_similarities(problem.points.parts[0], *own)
    elif metric.signed:
        own_points = points if candidates is None else candidates.points
        least = -best_products(points, labels, own_points, codes)
    elif candidates is None or top is None:
        return jnp.zeros(classes, jnp.float32)
    else:
        _, least = nearest_picks(points, labels, problem.points, codes, metric)
        least = jnp.where((problem.members.counts > 0)[labels], jnp.minimum(least, top), top)
    if rules.earlier is not None:
        least = jnp.minimum(least, rules.earlier)
    each = least if rules.weights is None else least * rules.weights
    return jnp.zeros(classes, jnp.float32).at[labels].add(each)
