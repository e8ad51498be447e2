"""Coresets of a pool of examples, from their embeddings: one front for all methods."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks, metrics
from crest_jax.class_greedy import (
    Settings,
    choose_by_class,
    choose_by_class_compiled,
    members_of,
    nearest_picks,
    sorted_on_host,
)
from crest_jax.dense_greedy import choose_dense
from crest_jax.facility_location import coverage_counts, largest_remainder
from crest_jax.medoids import medoids
from crest_jax.oracles import padded
from crest_jax.partitioned import choose_in_parts
from crest_jax.planning import METHODS, Plan, Shape, make_plan, quotas_for
from crest_jax.types import Array, Coreset, PyTree


class _Problem(NamedTuple):
    """A checked selection problem, or ``P`` of them."""

    embeddings: PyTree  # leaves [n, ...], or [p, n, ...] if batched
    labels: np.ndarray  # [p, n], int32; zero when the pool is covered as a whole
    counts: np.ndarray  # [p, c]
    quotas: np.ndarray  # [p, c]
    shape: Shape
    batched: bool


def select_coreset(
    embeddings: PyTree,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    quotas: Any = "proportional",
    method: str = "auto",
    memory_budget: int | None = None,
    epsilon: float = 0.1,
    key: Array | None = None,
) -> Coreset:
    """Choose ``size`` weighted medoids of a pool by facility location.

    Maximises ``f(S) = sum_i max_{j in S} s_ij``, where the similarity ``s_ij`` is the largest distance
    within a class minus the distance between the embeddings of ``i`` and ``j`` (see ``metrics`` for the
    others); the weight of a pick is the number of examples nearest to it (Yang, Kang and Mirzasoleiman,
    ICML 2023, Section 4; Mirzasoleiman, Bilmes and Leskovec, ICML 2020). With labels, each class is
    covered by its own picks. Proportional quotas are by the largest remainder, and then a pool with
    fewer than two picks a class is covered as a whole; a class without a pick goes to the nearest pick
    of any.

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

    Args:
      embeddings: [n, d], or ``Factored`` last-layer gradients, or [p, n, d] for ``p`` problems at once;
        any float type, computed in float32. With metric "precomputed" symmetric similarities [n, n].
      size: number of picks ``m``, at most ``n``.
      labels: [n] or [p, n], integer classes, or None.
      num_classes: number of classes; None takes the highest label plus one.
      metric: "euclidean", "sqeuclidean", "cosine", "exponential" or "precomputed".
      quotas: "proportional", "equal" or the number of picks of each class [c].
      method: see above.
      memory_budget: bytes of working memory above the embeddings; None allows 256 MiB.
      epsilon: for "stochastic", the loss against greedy that is allowed in expectation.
      key: PRNG key for "stochastic" and "partitioned"; None takes ``jax.random.key(0)``.

    Returns:
      A ``Coreset`` of exactly ``size`` different indices [m], class by class and in greedy order
      within each class, with weights [m] that sum to ``n``, gains [m] and the objective; with a leading
      axis [p] for several problems.

    Raises:
      ValueError: on empty, NaN or infinite embeddings, labels of the wrong length or out of range, a
        size outside ``[1, n]``, quotas that cannot be met, similarities that are not symmetric, an
        unknown metric or method, or a budget too small (the message says what would do).

    Example:
      >>> points = jnp.array([[0.0], [1.0], [10.0]])
      >>> coreset = select_coreset(points, 2)
      >>> coreset.indices.tolist(), coreset.weights.tolist(), float(coreset.objective)
      ([1, 2], [2.0, 1.0], 29.0)
    """
    _check_names(metric, method, epsilon)
    if not _checks.is_concrete(embeddings) or (labels is not None and not _checks.is_concrete(labels)):
        return _select_traced(
            embeddings, size, labels, num_classes, metric, quotas, method, epsilon, key
        )
    problem = _checked(embeddings, size, labels, num_classes, metric, quotas)
    plan = make_plan(problem.shape, method, memory_budget, epsilon)
    if plan.method == "dense":
        return choose_dense(
            problem.embeddings, problem.labels, problem.counts, problem.quotas, size=size,
            metric=metric, batched=problem.batched,
        )  # fmt: skip
    key = jax.random.key(0) if key is None else key
    choose = choose_in_parts if plan.method == "partitioned" else _by_class
    return _each(problem, partial(choose, size=size, metric=metric, plan=plan, key=key))


def plan_coreset(
    embeddings: PyTree,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    quotas: Any = "proportional",
    method: str = "auto",
    memory_budget: int | None = None,
    epsilon: float = 0.1,
) -> Plan:
    """Say which method ``select_coreset`` would take and what it would need; nothing is computed.

    Args:
      embeddings: as in ``select_coreset``; only shapes are read, so ``jax.ShapeDtypeStruct`` will do.
      size: see ``select_coreset``, as for all that follow.
      labels: see there.
      num_classes: see there.
      metric: see there.
      quotas: see there.
      method: see there.
      memory_budget: see there.
      epsilon: see there.

    Raises:
      ValueError: when the budget is too small; the message says what would do.

    Example:
      >>> pool = jax.ShapeDtypeStruct((1_000_000, 32), jnp.float32)
      >>> plan = plan_coreset(pool, 1_000)
      >>> plan.method, plan.exact, plan.memory < 256 * 2**20
      ('partitioned', False, True)
    """
    _check_names(metric, method, epsilon)
    problem = _shaped(embeddings, size, labels, num_classes, metric, quotas)
    return make_plan(problem.shape, method, memory_budget, epsilon)


def _check_names(metric: str, method: str, epsilon: float) -> None:
    for name, value, known in (("metric", metric, metrics.METRICS), ("method", method, METHODS)):
        _checks.require(
            value in known, f"{name} is {value!r} but must be one of {', '.join(known)}; choose one."
        )
    _checks.in_range("epsilon", epsilon, 0.0, 0.999, open_low=True)
    _checks.require(
        not (metric == "precomputed" and method == "partitioned"),
        f"method is {method!r} but a given similarity matrix is read as a whole; choose "
        '"lazy" or "stochastic".',
    )


def _shaped(
    embeddings: PyTree, size: int, labels: Any, num_classes: int | None, metric: str, quotas: Any
) -> _Problem:
    """Check everything but the values of the embeddings."""
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(embeddings)]
    axes = {len(shape) for shape in shapes}
    _checks.require(
        len(shapes) > 0 and axes in ({2}, {3}) and all(min(shape[-1:]) > 0 for shape in shapes),
        f"embeddings have shapes {shapes} but must be one array [n, d] (or [p, n, d] for p problems), "
        "d >= 1, or a Factored pair of them; flatten each example's embedding to a vector.",
    )
    _checks.require(
        len({shape[:-1] for shape in shapes}) == 1,
        f"embeddings have shapes {shapes} but all dimensions but the last must agree; pass one row per "
        "example in every part.",
    )
    batched = axes == {3}
    problems, rows = shapes[0][:-1] if batched else (1, shapes[0][0])
    _checks.require(
        rows > 0 and problems > 0,
        f"embeddings have shapes {shapes} but must hold at least one example; pass an array of shape "
        "[n, d] with n >= 1.",
    )
    matrix = metric == "precomputed"
    _checks.require(
        not matrix or (len(shapes) == 1 and shapes[0][-1] == rows),
        f'embeddings have shapes {shapes} but with metric="precomputed" they must be similarities '
        "[n, n]; pass a square matrix.",
    )
    _checks.positive_int("size", size)
    _checks.require(
        size <= rows,
        f"size is {size} but the pool holds {rows} examples and no example is chosen twice; ask for "
        f"at most {rows}.",
    )
    if labels is None:
        _checks.require(
            isinstance(quotas, str) and quotas == "proportional",
            f"quotas are {quotas!r} but there are no labels, so there is one class; pass labels, or "
            "leave quotas out.",
        )
        values, classes = np.zeros((problems, rows), np.int32), 1
    else:
        values = np.asarray(labels)
        _checks.require(
            values.shape == ((problems, rows) if batched else (rows,)),
            f"labels have shape {values.shape} but must have shape "
            f"{(problems, rows) if batched else (rows,)}, one per example; pass one integer class per "
            "example.",
        )
        flat = _checks.labels_valid(values.reshape(-1), problems * rows, num_classes)
        values = flat.reshape(problems, rows)
        classes = num_classes if num_classes is not None else int(values.max()) + 1
    if isinstance(quotas, str) and quotas == "proportional" and size < 2 * classes:
        values, classes = np.zeros_like(values), 1
    offsets = np.arange(problems, dtype=np.int64)[:, None] * classes
    counts = np.bincount((values + offsets).reshape(-1), minlength=problems * classes)
    counts = counts.reshape(problems, classes)
    each = quotas_for(counts, size, quotas)
    shape = Shape(
        rows=rows,
        width=sum(shape[-1] for shape in shapes),
        largest=int(counts.max()),
        size=size,
        rounds=int(each.max()),
        share=float((counts[each > 0] / each[each > 0]).max()),
        classes=classes,
        problems=problems,
        matrix=matrix,
    )
    return _Problem(embeddings, values, counts, each, shape, batched)


def _checked(
    embeddings: PyTree, size: int, labels: Any, num_classes: int | None, metric: str, quotas: Any
) -> _Problem:
    embeddings = jax.tree.map(jnp.asarray, embeddings)
    problem = _shaped(embeddings, size, labels, num_classes, metric, quotas)
    _checks.embeddings_finite(embeddings, batched=problem.batched)
    if problem.shape.matrix:
        _check_symmetric(embeddings if problem.batched else embeddings[None])
    return problem._replace(embeddings=embeddings)


def _check_symmetric(similarities: Array) -> None:
    for matrix in similarities:
        gap = float(jnp.max(jnp.abs(matrix - matrix.T)))
        _checks.require(
            gap == 0.0,
            f"similarities differ from their transpose by up to {gap:g} but must be symmetric, for "
            "rows are read as columns; pass (s + s.T) / 2.",
        )


def _each(problem: _Problem, choose: Callable[..., Coreset]) -> Coreset:
    """Solve the problems one after the other."""
    if not problem.batched:
        return choose(problem.embeddings, problem.labels[0], problem.counts[0], problem.quotas[0])
    found = []
    for p in range(problem.shape.problems):
        one = jax.tree.map(lambda x, p=p: x[p], problem.embeddings)
        found.append(choose(one, problem.labels[p], problem.counts[p], problem.quotas[p]))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _by_class(
    embeddings: PyTree,
    labels: np.ndarray,
    counts: np.ndarray,
    quotas: np.ndarray,
    *,
    size: int,
    metric: str,
    plan: Plan,
    key: Array,
) -> Coreset:
    members = sorted_on_host(labels, counts)
    # Rounded up, so that classes of nearly the same sizes share one compiled program.
    block = min(len(labels), padded(int(counts.max())))
    rounds = min(size, -(-int(quotas.max()) // 32) * 32)
    settings = Settings(size, rounds, block, block, metric, plan.capacity, plan.draws)
    chosen = choose_by_class_compiled(
        embeddings, members, None, members, jnp.asarray(quotas, jnp.int32), jnp.float32(jnp.nan), key,
        settings=settings,
    )  # fmt: skip
    orphans = bool(((quotas == 0) & (counts > 0)).any())
    return _weighted(
        embeddings, jnp.asarray(labels), chosen.picks, chosen.gains, chosen.nearest, metric, orphans
    )


@partial(jax.jit, static_argnames=("metric", "orphans"))
def _weighted(
    embeddings: PyTree,
    labels: Array,
    picks: Array,
    gains: Array,
    nearest: Array,
    metric: str,
    orphans: bool,
) -> Coreset:
    """Count what each pick stands for; with ``orphans`` some classes have no pick."""
    if metric == "precomputed":
        # Negative similarities improve nobody, but still say which pick is nearest.
        weights = coverage_counts(-embeddings, labels, picks)
        return Coreset(picks, weights, gains, jnp.sum(gains))
    if orphans:
        heads = jax.tree.map(lambda x: x[picks], embeddings)
        slots, _ = nearest_picks(embeddings, labels, heads, labels[picks], metric_name=metric)
        nearest = jnp.where(nearest >= 0, nearest, slots)
    weights = jnp.zeros(picks.shape[0], jnp.float32).at[nearest].add(1.0)
    return Coreset(picks, weights, gains, jnp.sum(gains))


def _select_traced(
    embeddings: PyTree,
    size: int,
    labels: Any,
    num_classes: int | None,
    metric: str,
    quotas: Any,
    method: str,
    epsilon: float,
    key: Array | None,
) -> Coreset:
    embeddings = jax.tree.map(jnp.asarray, embeddings)
    count = jax.tree.leaves(embeddings)[0].shape[0]
    _checks.require(
        isinstance(quotas, str) and quotas == "proportional" and method != "partitioned",
        f"quotas are {quotas!r} and method is {method!r}, but inside jit and vmap quotas are "
        'proportional and the method is not "partitioned"; select outside.',
    )
    _checks.require(
        labels is None or num_classes is not None,
        "num_classes is None but the arrays are traced, so the range of the labels is unknown; pass "
        "num_classes when calling select_coreset inside jit or vmap.",
    )
    _checks.require(
        1 <= size <= count, f"size is {size} but must lie in [1, {count}]; choose a size there."
    )
    _checks.require(
        size * count < 2**31,
        f"size times examples is {size * count} but must be below 2^31 inside jit, where quotas are "
        "computed in int32; select outside or from parts of the pool.",
    )
    classes = 1 if labels is None or num_classes is None else num_classes
    labels = jnp.zeros(count, jnp.int32) if labels is None else jnp.asarray(labels, jnp.int32)
    if method in ("auto", "dense"):
        return medoids(embeddings, labels, size=size, num_classes=classes, metric=metric)
    if size < 2 * classes:
        labels, classes = jnp.zeros_like(labels), 1
    width = sum(leaf.shape[-1] for leaf in jax.tree.leaves(embeddings))
    shape = Shape(count, width, count, size, size, count / size, classes, 1, metric == "precomputed")
    plan = make_plan(shape, method, None, epsilon)
    members = members_of(labels, classes)
    settings = Settings(size, size, count, count, metric, plan.capacity, plan.draws)
    chosen = choose_by_class(
        embeddings, members, None, members, largest_remainder(members.counts, size),
        jnp.float32(jnp.nan), jax.random.key(0) if key is None else key, settings=settings,
    )  # fmt: skip
    return _weighted(
        embeddings, labels, chosen.picks, chosen.gains, chosen.nearest, metric, classes > 1
    )
