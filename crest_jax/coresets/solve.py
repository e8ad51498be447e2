"""Selection problems of checked shape, and their solution by the method that is planned."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets import metrics
from crest_jax.coresets.asked import Asked, Extras, checked
from crest_jax.coresets.by_class import Members, Settings, nearest_picks, top_by_class
from crest_jax.coresets.dense import choose_dense
from crest_jax.coresets.extras import apart, most_picks, rules_of, weight_exponents, with_extras
from crest_jax.coresets.inputs import Pool, make_pool, restored, shape_of
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.one_pool import choose_in_pool
from crest_jax.coresets.partition import Partition, check_size, label_shape, partition
from crest_jax.coresets.partitioned import choose_in_parts
from crest_jax.coresets.plan import Plan, Shape
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.coresets.similarities import check_square
from crest_jax.data.devices import share_of_default_memory
from crest_jax.types import Array, Coreset


class Problem(NamedTuple):
    """A selection problem of checked shape, or ``p`` of them.

    Attributes:
      parts: the classes and their quotas.
      shape: sizes, for planning.
      size: picks of each problem, at most.
      batched: whether there is a leading axis of problems.
      rectangular: whether similarities are given whose columns are not their rows. The columns are
        what is chosen from then, and what the parts are of.
      extras: what is asked for beside the size; None: nothing.
    """

    parts: Partition
    shape: Shape
    size: int
    batched: bool
    rectangular: bool
    extras: Extras | None


def shaped(
    embeddings: Any,
    size: int | None,
    labels: Any,
    num_classes: int | None,
    metric: str,
    quotas: Any,
    batched: bool | None,
    asked: Asked,
) -> Problem:
    """Check everything but the values of the embeddings; see ``select_coreset``."""
    axes = None if labels is None else len(label_shape(labels))
    problems, rows, width, batched = shape_of(embeddings, metric, axes, batched)
    rectangular = metric == "precomputed" and rows != width
    if rectangular:
        check_square((rows, width), labels)
    count = width if rectangular else rows
    pool = (problems, count) if batched else (count,)
    extras = checked(asked, embeddings, pool, rows, metric, labels) if asked.any else None
    most = count if extras is None else most_picks(extras, count)
    if size is not None:
        check_size(size, most, "columns" if rectangular else "examples")
    wanted = most if size is None else min(size, most)
    _checks.require(
        size is not None or (isinstance(quotas, str) and quotas == "proportional"),
        f"quotas are {_checks.brief(quotas)} but size is None; pass the size that they sum to.",
    )
    share_out = rows if size is None and labels is not None else min(wanted, count)
    parts = partition(labels, pool, share_out, quotas, num_classes)
    if extras is not None:
        parts = with_extras(parts, extras, share_out, all_of_them=size is None)
        if extras.others is not None:
            parts = parts._replace(quotas=np.array([[wanted]]))
    size = int(parts.quotas[0].sum())
    elsewhere = 0 if extras is None or extras.others is None else most
    needed = parts.quotas > 0
    shape = Shape(
        rows=max(rows, count),
        width=width,
        largest=max(rows, count) if rectangular else int(parts.counts.max()) + elsewhere,
        size=size,
        rounds=int(parts.quotas.max()),
        share=float((parts.counts[needed] / parts.quotas[needed]).max()),
        classes=parts.number,
        problems=problems,
        matrix=metric == "precomputed",
        exact=asked.exact_only,
        plain=not (asked.ends or (extras is not None and extras.first is not None)),
        room=share_of_default_memory(),  # where the work will be done
    )
    return Problem(parts, shape, size, batched, rectangular, extras)


class _Given(NamedTuple):
    """Points of the pool and of elsewhere, measured alike."""

    pool: Pool
    points: Points
    others: Points | None
    earlier: Points | None


def _given(rows: Any, problem: Problem, metric: str, gamma: float | None) -> _Given:
    extras = problem.extras
    more = [] if extras is None else [x for x in (extras.others, extras.earlier) if x is not None]
    if not more:
        pool = make_pool(rows, metric, batched=problem.batched, gamma=gamma)
        return _Given(pool, pool.points, None, None)
    # Prepared as one, so that shift and scale are the same.
    joined = jax.tree.map(lambda *parts: np.concatenate([np.asarray(x) for x in parts]), rows, *more)
    pool = make_pool(joined, metric, batched=False, gamma=gamma)
    ends = np.cumsum([len(jax.tree.leaves(part)[0]) for part in (rows, *more)])
    pieces = [
        metrics.take_rows(pool.points, slice(first, end))
        for first, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert extras is not None
    others = pieces[1] if extras.others is not None else None
    return _Given(pool, pieces[0], others, pieces[-1] if extras.earlier is not None else None)


def solve(
    rows: Any, problem: Problem, plan: Plan, metric: str, gamma: float | None, key: Array
) -> Coreset:
    """Solve a problem by the planned method.

    Args:
      rows: embeddings as from ``rows_of``.
      problem: of these.
      plan: for it.
      metric: see ``select_coreset``.
      gamma: see there.
      key: PRNG key.
    """
    given = _given(rows, problem, metric, gamma)
    pool, rules, extras = given.pool, NO_RULES, problem.extras
    if extras is not None:
        shift = weight_exponents(extras, problem.shape.problems)
        pool = pool._replace(exponents=pool.exponents + shift)
        earlier = None
        if given.earlier is not None:
            none = jnp.zeros(problem.shape.rows, jnp.int32)
            heads = given.earlier
            earlier = nearest_picks(given.points, none, heads, none[: heads.rows], pool.metric)[1]
        rules = rules_of(extras, problem.parts, pool.exponents, shift, earlier)
    if plan.method == "dense" and not problem.rectangular:
        found = _dense(problem, given, rules, pool.metric, plan.at_once)
    else:
        choose = choose_in_parts if plan.method == "partitioned" else choose_in_pool
        spread = problem.parts.spread
        own = partial(choose, size=problem.size, metric=pool.metric, plan=plan, spread=spread, key=key)
        found = _each(problem, given, rules, own)
    if extras is not None:
        found = unscaled(found, shift, batched=problem.batched)
    return restored(found, pool)


def unscaled(coreset: Coreset, shift: np.ndarray, *, batched: bool) -> Coreset:
    """Return a coreset whose weights were multiplied by two to the power ``shift`` [p] as they are.

    Example:
      >>> none = jnp.zeros(1)
      >>> found = Coreset(none, jnp.array([0.5]), none, none[0], none, none[0])
      >>> unscaled(found, np.array([-2]), batched=False).weights.tolist()
      [2.0]
    """
    if not shift.any():
        return coreset
    back = -shift[:, None] if batched else -shift[0]
    weights = np.ldexp(np.asarray(coreset.weights, np.float64), back)
    return coreset._replace(weights=jnp.asarray(weights, jnp.float32))


def _each(problem: Problem, given: _Given, rules: Rules, choose: Callable[..., Coreset]) -> Coreset:
    """Solve the problems one after the other."""
    found = []
    for p in range(problem.shape.problems):
        one = jax.tree.map(lambda x, p=p: x[p], given.points) if problem.batched else given.points
        more: dict[str, Any] = {}
        if problem.extras is not None:
            own, candidates = apart(problem.extras, problem.parts, rules, one, given.others, p)
            more = {"rules": own} if candidates is None else {"rules": own, "candidates": candidates}
        found.append(choose(one, *(each[p] for each in problem.parts[:3]), **more))
    if not problem.batched:
        return found[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _dense(problem: Problem, given: _Given, rules: Rules, metric: Metric, at_once: int) -> Coreset:
    parts, points = problem.parts, given.points
    choose = partial(
        choose_dense, size=problem.size, metric=metric, batched=problem.batched, at_once=at_once
    )
    if given.others is None:
        return choose(points, parts, rules=rules)
    # One pool of rows that are stood for and rows that may be picked.
    rows, number = points.rows, given.others.rows
    whole = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), points, given.others)
    total = np.array([[rows + number]])
    parts = Partition(np.zeros((1, rows + number), np.int32), total, parts.quotas, parts.spread)

    def lengthened(leaf: Array | None, more: float, *, in_front: bool = False) -> Array | None:
        if leaf is None:
            return None
        extra = jnp.full((1, rows if in_front else number), more, leaf.dtype)
        return jnp.concatenate([extra, leaf] if in_front else [leaf, extra], axis=1)

    ones = jnp.ones((1, rows), jnp.float32)
    rules = rules._replace(
        weights=lengthened(ones if rules.weights is None else rules.weights, 0.0),
        earlier=lengthened(rules.earlier, np.inf),
        allowed=jnp.arange(rows + number)[None] >= rows,
        costs=lengthened(rules.costs, 1.0, in_front=True),
        units=lengthened(rules.units, 1, in_front=True),
    )
    order = [jnp.arange(count, dtype=jnp.int32) for count in (number, rows)]
    members = [Members(x, jnp.array([len(x)], jnp.int32)) for x in order]
    settings = Settings(0, 0, number, rows, metric, 0, 0)
    quotas = jnp.asarray(parts.quotas[0], jnp.int32)
    top = top_by_class(given.others, members[0], points, members[1], quotas, settings=settings)
    found = choose(whole, parts, rules=rules, top=top)
    assert found.assignments is not None
    return found._replace(indices=found.indices - rows, assignments=found.assignments[:rows])
