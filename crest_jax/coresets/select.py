"""Coresets of a pool of examples, from their embeddings: one front for all methods."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets import metrics
from crest_jax.coresets.by_class import (
    Settings,
    choose_by_class_compiled,
    sorted_on_host,
)
from crest_jax.coresets.dense import choose_dense
from crest_jax.coresets.inputs import make_pool, restored, rows_of, shape_of
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.nearest import Orphans, weighted_compiled
from crest_jax.coresets.neighbors import check_neighbors, plan_neighbors, select_by_neighbors
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.partition import Partition, check_size, label_shape, partition
from crest_jax.coresets.partitioned import choose_in_parts
from crest_jax.coresets.plan import METHODS, Plan, Shape, make_plan
from crest_jax.coresets.rectangular import choose_rectangular
from crest_jax.coresets.sparse import check_square, is_sparse, plan_sparse, select_sparse
from crest_jax.coresets.traced import select_traced
from crest_jax.types import Array, Coreset, PyTree


class _Problem(NamedTuple):
    """A selection problem of checked shape, or ``p`` of them."""

    parts: Partition
    shape: Shape
    batched: bool
    rectangular: bool


def select_coreset(
    embeddings: PyTree,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    gamma: float | None = None,
    neighbors: int | None = None,
    quotas: Any = "proportional",
    method: str = "auto",
    memory_budget: int | None = None,
    epsilon: float = 0.1,
    key: Array | None = None,
    batched: bool | None = None,
) -> Coreset:
    """Choose ``size`` weighted medoids of a pool by facility location.

    Maximises ``f(S) = sum_i max(0, max_{j in S} s_ij)``, where the similarity ``s_ij`` is the largest
    distance within a class minus the distance between the embeddings of ``i`` and ``j`` (other metrics:
    see below). The weight of a pick is the number of examples nearest to it; a pick stands for
    itself, and of equally near picks the earlier one counts (Yang, Kang and Mirzasoleiman, ICML 2023,
    Section 4; Mirzasoleiman, Bilmes and Leskovec, ICML 2020). With labels, each class is covered by its
    own picks; classes are those that occur, whatever their numbers.

    Proportional quotas are by the largest remainder, with at least one pick a class. A pool with one to
    two picks a class is covered as a whole. With fewer picks than classes the largest classes get one
    each, and weights are scaled up to sum to ``n``. Examples of a class to which given quotas leave no
    pick count at the nearest pick of any class.

    The methods:

    * ``"dense"``: greedy on stored similarities, many small classes and problems at once. Exact.
    * ``"lazy"``: lazy greedy that computes similarities when it needs them, in memory linear in ``n``;
      it keeps those that can still matter as far as ``memory_budget`` allows. Exact.
    * ``"stochastic"``: each pick is the best of a random sample (Mirzasoleiman et al., AAAI 2015).
    * ``"partitioned"``: lazy greedy in parts, then among their picks (Mirzasoleiman et al., NeurIPS
      2013).
    * ``"auto"``: ``"dense"`` for small classes, ``"lazy"`` up to 100,000 examples in a class, else
      ``"partitioned"``. ``plan_coreset`` tells which, and what it costs, without doing it.

    Exact means that every pick has the largest gain up to float32 rounding (a relative gap of at most
    1e-6); equal gains go to the lowest row.

    Concrete arrays are checked. Inside ``jit`` and ``vmap`` nothing is, labels need ``num_classes``,
    "auto" means "dense" without class blocks (``O(n^2)`` memory), and "partitioned" is not available.

    Similarities (``u`` from rows, ``max(u)`` within a class): "euclidean", "sqeuclidean", "manhattan":
    ``max(u) - u``; "cosine" and "correlation" (Pearson's, of two rows): the same of 1 minus it, where a
    row of zeros, or a constant one, has 0 with every other row; "exponential": ``exp(-|x - y| / d)``;
    "rbf": ``exp(-gamma |x - y|^2)``; "dot": ``x.y``. "precomputed" takes similarities: entry [i, j]
    says how well column j stands for row i; picks are columns, and only where the matrix is square does
    a pick stand for itself. In a sparse matrix of SciPy what is absent is 0, nothing is made dense, and
    rows to which no pick is similar count at all picks in proportion. With ``neighbors=k`` a row is
    similar to its k nearest rows only (exactly these, of its class). Gains are then those in this
    graph, where the largest distance is similarity 0; weights are by the nearest of all picks.

    Args:
      embeddings: [n, d], or ``Factored`` last-layer gradients (not with "manhattan", "correlation"), or
        [p, n, d] for ``p`` problems at once, or a list of batches [b, d]; any real type, computed in
        float32. Rows of 64-bit numbers far from the origin are moved near it before. With metric
        "precomputed" similarities [n, n] or [n, m]; one that is not symmetric is copied.
      size: number of picks ``m``, at most ``n``.
      labels: [n] or [p, n], the class of each example: whole numbers or strings; None: one class.
      num_classes: number of classes that there may be, inside ``jit``; outside it only makes labels
        from it on an error.
      metric: see above.
      gamma: of "rbf", positive; None: 1 / d.
      neighbors: k, of each row, itself among them; None: all. Only with the method "lazy" or "auto".
      quotas: "proportional", "equal", the number of picks of each class that occurs [c] in the order of
        the labels, or by label from 0 on, or a dictionary ``{label: picks}``.
      method: see above.
      memory_budget: bytes of working memory above the embeddings; None allows 256 MiB.
      epsilon: for "stochastic", the loss against greedy that is allowed in expectation.
      key: PRNG key for "stochastic" and "partitioned"; None takes ``jax.random.key(0)``.
      batched: whether embeddings are [p, n, d]; None goes by their axes, and refuses what looks like
        images or sequences.

    Returns:
      A ``Coreset`` of exactly ``size`` different indices [m], class by class and in greedy order
      within each class, with weights [m] that sum to ``n``, gains [m] and the objective; with a leading
      axis [p] for several problems.

    Raises:
      ValueError: on embeddings that are empty, sparse, complex, NaN or infinite, labels of the wrong
        length or out of range, a size outside ``[1, n]``, quotas that cannot be met, similarities that
        are never positive, an unknown metric or method, a budget too small (the message says what
        would do), or an objective that float32 cannot hold.
      RuntimeError: in a process that was forked after the first call.
      UserWarning: a warning, on similarities that look like distances.

    Example:
      >>> points = jnp.array([[0.0], [1.0], [10.0]])
      >>> coreset = select_coreset(points, 2)
      >>> coreset.indices.tolist(), coreset.weights.tolist(), float(coreset.objective)
      ([1, 2], [2.0, 1.0], 29.0)
    """
    _check_names(metric, method, epsilon)
    metrics.check_gamma(metric, gamma)
    traced = not _checks.is_concrete(embeddings, labels)
    if neighbors is not None:
        check_neighbors(neighbors, metric, method, traced=traced)
    if traced:
        return select_traced(
            embeddings, size, labels, num_classes, metric, gamma, quotas, method, epsilon, key
        )
    not_forked()
    key = _checks.default_key(key)
    if metric == "precomputed" and is_sparse(embeddings):
        return select_sparse(
            embeddings, size, labels=labels, num_classes=num_classes, quotas=quotas, method=method,
            memory_budget=memory_budget, batched=batched,
        )  # fmt: skip
    rows = rows_of(embeddings, metric)
    problem = _shaped(rows, size, labels, num_classes, metric, quotas, batched)
    if neighbors is not None:
        block = _plan_neighbors(problem, neighbors, memory_budget)[1]
        pool = make_pool(rows, metric, batched=False, gamma=gamma)
        return select_by_neighbors(pool, problem.parts, size, neighbors, block)
    plan = make_plan(problem.shape, method, memory_budget, epsilon)
    pool = make_pool(rows, metric, batched=problem.batched, gamma=gamma)
    if problem.rectangular:
        every = partial(choose_rectangular, size=size, metric=pool.metric, plan=plan, key=key)
        found = _each(problem, pool.points, lambda points, *_: every(points))
    elif plan.method == "dense":
        found = choose_dense(
            pool.points, problem.parts, size=size, metric=pool.metric, batched=problem.batched
        )  # fmt: skip
    else:
        choose = choose_in_parts if plan.method == "partitioned" else _by_class
        spread = problem.parts.spread
        own = partial(choose, size=size, metric=pool.metric, plan=plan, spread=spread, key=key)
        found = _each(problem, pool.points, own)
    return restored(found, pool)


_first_use: list[int] = []  # the process in which a selection first ran


def not_forked() -> None:
    """Require to be in the process in which a selection first ran: a forked child would wait for ever.

    Raises:
      RuntimeError: in a child that was forked after the first call.

    Example:
      >>> not_forked()
    """
    if not _first_use:
        _first_use.append(os.getpid())
    _checks.not_forked(_first_use[0], "JAX was first used")


def plan_coreset(
    embeddings: PyTree,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    neighbors: int | None = None,
    quotas: Any = "proportional",
    method: str = "auto",
    memory_budget: int | None = None,
    epsilon: float = 0.1,
    batched: bool | None = None,
) -> Plan:
    """Say which method ``select_coreset`` would take and what it would need; nothing is computed.

    Args:
      embeddings: as in ``select_coreset``; only shapes are read, so ``jax.ShapeDtypeStruct`` will do.
      size: see ``select_coreset``, as for all that follow.
      labels: see there.
      num_classes: see there.
      metric: see there.
      neighbors: see there.
      quotas: see there.
      method: see there.
      memory_budget: see there.
      epsilon: see there.
      batched: see there.

    Raises:
      ValueError: when the budget is too small; the message says what would do.

    Example:
      >>> pool = jax.ShapeDtypeStruct((1_000_000, 32), jnp.float32)
      >>> plan = plan_coreset(pool, 1_000)
      >>> plan.method, plan.exact, plan.memory < 256 * 2**20
      ('partitioned', False, True)
    """
    _check_names(metric, method, epsilon)
    if neighbors is not None:
        check_neighbors(neighbors, metric, method)
    if metric == "precomputed" and is_sparse(embeddings):
        return plan_sparse(
            embeddings, size, labels=labels, method=method, memory_budget=memory_budget, batched=batched
        )
    rows = rows_of(embeddings, metric)
    problem = _shaped(rows, size, labels, num_classes, metric, quotas, batched)
    if neighbors is not None:
        return _plan_neighbors(problem, neighbors, memory_budget)[0]
    return make_plan(problem.shape, method, memory_budget, epsilon)


def _plan_neighbors(problem: _Problem, neighbors: int, memory_budget: int | None) -> tuple[Plan, int]:
    shape = problem.shape
    return plan_neighbors(
        neighbors, shape.rows, shape.width, shape.size, problem.batched, memory_budget
    )


def _check_names(metric: str, method: str, epsilon: float) -> None:
    _checks.one_of("metric", metric, metrics.METRICS)
    _checks.one_of("method", method, METHODS)
    _checks.in_range("epsilon", epsilon, 0.0, 0.999, open_low=True)
    _checks.require(
        not (metric == "precomputed" and method == "partitioned"),
        f"method is {method!r} but a given similarity matrix is read as a whole; choose "
        '"lazy" or "stochastic".',
    )


def _shaped(
    embeddings: Any,
    size: int,
    labels: Any,
    num_classes: int | None,
    metric: str,
    quotas: Any,
    batched: bool | None,
) -> _Problem:
    """Check everything but the values of the embeddings."""
    axes = None if labels is None else len(label_shape(labels))
    problems, rows, width, batched = shape_of(embeddings, metric, axes, batched)
    longest, rectangular = rows, metric == "precomputed" and rows != width
    if rectangular:  # the columns are what is chosen from
        check_square((rows, width), labels)
        longest, rows = max(rows, width), width
    check_size(size, rows, "columns" if rectangular else "examples")
    parts = partition(labels, (problems, rows) if batched else (rows,), size, quotas, num_classes)
    wanted = parts.quotas > 0
    shape = Shape(
        rows=longest,
        width=width,
        largest=longest if rectangular else int(parts.counts.max()),
        size=size,
        rounds=int(parts.quotas.max()),
        share=float((parts.counts[wanted] / parts.quotas[wanted]).max()),
        classes=parts.number,
        problems=problems,
        matrix=metric == "precomputed",
    )
    return _Problem(parts, shape, batched, rectangular)


def _each(problem: _Problem, points: Points, choose: Callable[..., Coreset]) -> Coreset:
    """Solve the problems one after the other."""
    if not problem.batched:
        return choose(points, *(each[0] for each in problem.parts[:3]))
    found = []
    for p in range(problem.shape.problems):
        one = jax.tree.map(lambda x, p=p: x[p], points)
        found.append(choose(one, *(each[p] for each in problem.parts[:3])))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _by_class(
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
) -> Coreset:
    members = sorted_on_host(labels, counts)
    # Rounded up, so that classes of nearly the same sizes share one compiled program.
    block = min(len(labels), padded(int(counts.max())))
    rounds = min(size, -(-int(quotas.max()) // 32) * 32)
    settings = Settings(size, rounds, block, block, metric, plan.capacity, plan.draws)
    chosen = choose_by_class_compiled(
        points, members, None, members, jnp.asarray(quotas, jnp.int32), None, key, settings=settings
    )
    lost = bool(((quotas == 0) & (counts > 0)).any())
    orphans: Orphans = ("spread" if spread else "nearest") if lost else "none"
    return weighted_compiled(
        points, jnp.asarray(labels), chosen.picks, chosen.gains, chosen.nearest, metric, orphans
    )
