"""Selection in parts, for data that one exact run cannot afford.

Two rounds (GreeDi; Mirzasoleiman et al., Distributed submodular maximization, NeurIPS 2013): exact
greedy chooses ``m`` examples in each part, then ``m`` among all picks of the parts, judged by a random
sample of the data of one part's size, as the paper does for objectives that are sums over examples.
With rows assigned to parts at random the outcome is in expectation at least ``(1 - 1/e) / 2`` of the
best (Barbosa et al., ICML 2015; Mirrokni and Zadimoghaddam, STOC 2015), up to the sampling error.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.by_class import (
    Chosen,
    Settings,
    choose_by_class_compiled,
    nearest_picks,
    sorted_on_host,
)
from crest_jax.coresets.coverage import covered_share
from crest_jax.coresets.metrics import Metric, Points, pad_rows, take_rows
from crest_jax.coresets.plan import Plan
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.types import Array, Coreset


def choose_in_parts(
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
) -> Coreset:
    """Select from arrays in memory; rows are assigned to parts at random, each class evenly.

    Args:
      points: [n] rows.
      labels: [n], int32.
      counts: not needed.
      quotas: [c], picks of each class, summing to ``size``.
      size: picks in all.
      metric: of the points.
      plan: says how large a part is.
      spread: see ``Partition``.
      key: PRNG key.
      rules: only weights.

    Returns:
      See ``select_coreset``; the gains are estimates from the sample, scaled to ``n``.
    """
    del counts
    each = np.ones(len(labels)) if rules.weights is None else np.asarray(rules.weights, np.float64)

    def masses(rows: np.ndarray) -> np.ndarray | None:
        return None if rules.weights is None else each[rows].astype(np.float32)

    rng = generator(key)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    wanted = quotas > 0
    parts = max(1, -(-len(labels) // plan.part))
    picks, top = [], 0.0
    for part in range(parts):
        rows = np.sort(order[part::parts])
        own = np.minimum(quotas, np.bincount(labels[rows], minlength=len(quotas)))  # rare classes whole
        if not own.any():
            continue
        local = choose_in_part(
            take_rows(points, rows), labels[rows], own, metric, plan, weights=masses(rows)
        )
        picks.append(rows[np.asarray(local.picks)])
        top = max(top, float(local.top))
    union = np.sort(np.concatenate(picks))
    sample = order[int(rng.integers(parts)) :: parts]
    missed = union[~np.isin(labels[union], labels[sample])]  # a rare class is judged by its picks
    sample = np.sort(np.concatenate([sample, missed]))
    last = choose_in_part(
        take_rows(points, union), labels[union], quotas, metric, plan,
        clients=take_rows(points, sample), client_labels=labels[sample], top=top,
        weights=masses(sample),
    )  # fmt: skip
    chosen = union[np.asarray(last.picks)]
    slots, values = nearest_picks(
        points, jnp.asarray(labels), take_rows(points, chosen), jnp.asarray(labels[chosen]), metric
    )
    slots = slots.at[chosen].set(jnp.arange(size, dtype=jnp.int32))
    covered = wanted[labels]
    counted = covered if spread else np.ones(len(labels), bool)
    total = each.sum()
    weights = counts_at(np.asarray(slots), counted * each, size, total)
    values = np.asarray(values, np.float64)[covered]
    objective = (each[covered] * np.maximum(float(last.top) - values, 0.0)).sum()
    gains = np.asarray(last.gains) * (total / max(each[sample].sum(), np.finfo(np.float64).tiny))
    assignments = np.where(counted, np.asarray(slots), -1)
    largest = None if metric.signed else float(last.top) * total
    return coreset_of(chosen, weights, gains, objective, largest, assignments)


def counts_at(slots: np.ndarray, counted: np.ndarray, size: int, total: float) -> np.ndarray:
    """Count rows at their picks ``slots`` [n], each ``counted`` [n] times, scaled to a total.

    Where no row that counts has a pick the picks share the total alike.

    Example:
      >>> counts_at(np.array([0, 1, 1]), np.array([True, True, False]), 2, 3).tolist()
      [1.5, 1.5]
    """
    found = np.bincount(slots, counted.astype(np.float64), minlength=size)
    return found * (total / found.sum()) if found.any() else np.full(size, total / size)


def generator(key: Array, process: int = 0) -> np.random.Generator:
    """Return NumPy's random numbers for a PRNG key, others in each process.

    Example:
      >>> bool(generator(jax.random.key(0)).random() < 1)
      True
    """
    words = np.asarray(jax.random.key_data(key)).astype(np.uint32).ravel().tolist()
    return np.random.default_rng([*words, process] if process else words)


def coreset_of(
    chosen: np.ndarray,
    weights: np.ndarray,
    gains: np.ndarray,
    objective: float,
    largest: float | None,
    assignments: np.ndarray | None = None,
) -> Coreset:
    """Return a ``Coreset`` of host values; ``largest`` is the largest possible objective, if known.

    Example:
      >>> found = coreset_of(np.array([3]), np.array([2]), np.array([1.5]), 1.5, 2.0)
      >>> found.weights.tolist(), float(found.coverage)
      ([2.0], 0.75)
    """
    reached = jnp.asarray(objective, jnp.float32)
    return Coreset(
        jnp.asarray(chosen, jnp.int32),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(gains, jnp.float32),
        reached,
        None if assignments is None else jnp.asarray(assignments, jnp.int32),
        None if largest is None else covered_share(reached, largest, 1.0),
    )


def choose_in_part(
    points: Points,
    labels: np.ndarray,
    quotas: np.ndarray,
    metric: Metric,
    plan: Plan,
    *,
    clients: Points | None = None,
    client_labels: np.ndarray | None = None,
    top: float | None = None,
    weights: np.ndarray | None = None,
) -> Chosen:
    """Run exact greedy on a pool, to cover itself or some clients (then ``top`` is needed).

    Args:
      points: [k] rows to choose from.
      labels: [k], in ``[0, c)``.
      quotas: [c], picks of each class.
      metric: of the points.
      plan: says how.
      clients: rows to cover; None: the points themselves.
      client_labels: their labels.
      top: dissimilarity at which the similarity is 0; None for the largest one of the points.
      weights: what the rows to cover count; None: one each. Gains are those of the picks only with a
        ``top``.
    """
    # One shape for all parts of nearly the same size, so that they share a compiled program.
    points, members, block = _padded(points, labels, len(quotas))
    client_members, client_block = members, block
    if clients is not None:
        clients, client_members, client_block = _padded(clients, client_labels, len(quotas))
    size, rounds = int(quotas.sum()), int(quotas.max())
    settings = Settings(size, rounds, block, client_block, metric, plan.capacity, 0, plan.pending)
    level = None if top is None else jnp.asarray(top, jnp.float32)
    rules = NO_RULES
    if weights is not None:
        rules = Rules(weights=jnp.asarray(np.pad(weights, (0, -len(weights) % 512))))
    return choose_by_class_compiled(
        points, members, clients, client_members, jnp.asarray(quotas, jnp.int32), level,
        jax.random.key(0), rules, settings=settings,
    )  # fmt: skip


def _padded(points: Points, labels: Any, classes: int) -> tuple[Points, Any, int]:
    """Fill rows up to a multiple of 512; return them, their members and the largest class, rounded."""
    padding = -len(labels) % 512
    counts = np.bincount(labels, minlength=classes)
    members = sorted_on_host(labels, counts, padding)
    return pad_rows(points, padding), members, -(-int(counts.max()) // 512) * 512
