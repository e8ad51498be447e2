"""Coresets of a pool of examples, from their embeddings: one front for all methods."""

import os
from typing import Any

from crest_jax import _checks
from crest_jax.coresets import metrics
from crest_jax.coresets.asked import Asked, check_method, check_size
from crest_jax.coresets.inputs import rows_of
from crest_jax.coresets.listed import plan_on_graph, solve_on_graph
from crest_jax.coresets.neighbors import check_neighbors
from crest_jax.coresets.plan import METHODS, Plan, make_plan
from crest_jax.coresets.similarities import is_sparse
from crest_jax.coresets.solve import shaped, solve
from crest_jax.coresets.sparse import check_listed_method
from crest_jax.coresets.traced import select_traced
from crest_jax.types import Array, Coreset, PyTree


def select_coreset(
    embeddings: PyTree,
    size: int | None = None,
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
    sample_weights: Any = None,
    initial: Any = None,
    candidates: Any = None,
    costs: Any = None,
    budget: float | None = None,
    stop_gain: float | None = None,
    coverage: float | None = None,
) -> Coreset:
    """Choose ``size`` weighted medoids of a pool by facility location.

    Maximises ``f(S) = sum_i w_i max(0, max_{j in S} s_ij)``, where the similarity ``s_ij`` is the
    largest distance within a class minus the distance between the embeddings of ``i`` and ``j`` (other
    metrics: see below), and the sample weights ``w_i`` are 1 unless given. The weight of a pick is the
    number of examples nearest to it; a pick stands for itself, and of equally near picks the earlier
    one counts (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4; Mirzasoleiman, Bilmes and Leskovec,
    ICML 2020). With labels, each class is covered by its own picks; classes are those that occur,
    whatever their numbers.

    Proportional quotas are by the largest remainder, with at least one pick a class. A pool with one to
    two picks a class is covered as a whole. With fewer picks than classes the largest classes get one
    each, and weights are scaled up to sum to ``n``. Examples of a class to which given quotas leave no
    pick count at the nearest pick of any class.

    The methods:

    * ``"dense"``: greedy on stored similarities, many small classes and problems at once. Exact.
    * ``"lazy"``: lazy greedy that computes similarities when it needs them, in memory linear in ``n``;
      it keeps those that can still matter as far as ``memory_budget`` allows. Exact.
    * ``"push"``: greedy for GPUs and TPUs, exact too: every pick's change of cover is pushed to all
      gains, in kernels of fixed size. Not with costs, an end other than a size, positions as
      ``initial`` or given similarities.
    * ``"stochastic"``: each pick is the best of a random sample (Mirzasoleiman et al., AAAI 2015).
    * ``"partitioned"``: lazy greedy in parts, then among their picks (Mirzasoleiman et al., NeurIPS
      2013).
    * ``"auto"``: on a CPU ``"dense"`` for small classes, ``"lazy"`` up to 100,000 examples in a class,
      else ``"partitioned"``. On a GPU or TPU the faster of ``"dense"``, where a quarter of its memory
      holds the similarities, and ``"push"``, up to 200,000; else ``"partitioned"``. ``plan_coreset``
      tells which, and what it costs, without doing it.

    Exact means that every pick has the largest gain up to float32 rounding (a relative gap of at most
    1e-6); equal gains go to the lowest row.

    The choice grows pick by pick: without labels the exact methods' picks of size ``m`` are the first
    ``m`` of those of any larger size, and ``initial`` takes up a choice where it ended. With ``costs``
    the size follows from the budget; with ``stop_gain`` or ``coverage`` from the objective, and no more
    is computed than that takes.

    With costs two greedy runs are made, by gain and by gain over cost, each of the candidates that
    still fit until none fits or gains; the better result is at least ``(1 - 1/e) / 2`` of the best
    within the budget (Leskovec et al., Cost-effective outbreak detection in networks, KDD 2007,
    Theorem 3; without ``initial`` and ``size``).

    Concrete arrays are checked. Inside ``jit`` and ``vmap`` nothing is, labels need ``num_classes``,
    "auto" means "dense" without class blocks (``O(n^2)`` memory), and "partitioned" is not available.
    Method "dense" takes sample weights there and, without labels, positions: ``initial`` and a mask of
    ``candidates``.

    Similarities (``u`` from rows, ``max(u)`` within a class): "euclidean", "sqeuclidean", "manhattan":
    ``max(u) - u``; "cosine" and "correlation" (Pearson's, of two rows): the same of 1 minus it, where a
    row of zeros, or a constant one, has 0 with every other row; "exponential": ``exp(-|x - y| / d)``;
    "rbf": ``exp(-gamma |x - y|^2)``; "dot": ``x.y``. "precomputed" takes similarities: entry [i, j]
    says how well column j stands for row i; picks are columns, and only where the matrix is square does
    a pick stand for itself (else positions and costs are those of columns, and there are no labels). In
    a sparse matrix of SciPy what is absent is 0, nothing is made dense, and rows to which no pick is
    similar count at all picks in proportion. With ``neighbors=k`` a row is similar to its k nearest
    rows only (exactly these, of its class). Gains are then those in this graph, where the largest
    distance between such neighbors is similarity 0; weights are by the nearest of all picks.

    Args:
      embeddings: [n, d], or ``Factored`` last-layer gradients (not with "manhattan", "correlation"), or
        [p, n, d] for ``p`` problems at once, or a list of batches [b, d]; any real type, computed in
        float32. Rows of 64-bit numbers far from the origin are moved near it before. With metric
        "precomputed" similarities [n, n] or [n, m]; one that is not symmetric is copied.
      size: number of picks ``m``, at most ``n``; the most there may be where something else ends the
        choice, which may be None then.
      labels: [n] or [p, n], the class of each example: whole numbers or strings; None: one class.
      num_classes: number of classes that there may be, inside ``jit``; outside it only makes labels
        from it on an error.
      metric: see above.
      gamma: of "rbf", positive; None: 1 / d.
      neighbors: k, of each row, itself among them; None: all. Only with the method "lazy" or "auto".
      quotas: "proportional", "equal", the number of picks of each class that occurs [c] in the order of
        the labels, or by label from 0 on, or a dictionary ``{label: picks}``.
      method: see above.
      memory_budget: bytes of working memory above the embeddings; None allows 256 MiB on a CPU, and a
        quarter of the memory of an accelerator.
      epsilon: for "stochastic", the loss against greedy that is allowed in expectation.
      key: PRNG key for "stochastic" and "partitioned"; None takes ``jax.random.key(0)``.
      batched: whether embeddings are [p, n, d]; None goes by their axes, and refuses what looks like
        images or sequences.
      sample_weights: [n], how much each row counts: finite, at least 0, not all 0. A row of weight 0
        may be picked. Quotas go by the number of examples all the same.
      initial: picks that are there already. Whole numbers [k] are positions in the pool: they come
        first (first within their class) in the order given, count towards size, quotas and budget, and
        need not be candidates; proportional quotas are raised where they exceed them, and the rest is
        shared out again. Real rows [k, d] lie elsewhere: they cover the pool from the start and are not
        in the result; rows at least as near to them as to any pick count for none, so that weights sum
        to less.
      candidates: what may be picked, for rows that are all stood for: positions [k], a mask [n], or,
        without labels, real rows [k, d] of elsewhere, in which indices and costs count then. The
        largest distance is that between a row and a candidate.
      costs: [n], positive, of each row as a candidate, with a budget; for one class.
      budget: what the costs of all picks may sum to. Sums that exceed it by less than a millionth count
        as within it, unless costs are whole numbers, which are counted exactly.
      stop_gain: the choice ends before a pick that gains less, in units of the objective; with labels
        each class ends by itself. There may be no pick at all.
      coverage: the choice ends when the objective reaches this share, in (0, 1], of that of all
        candidates together (to within a millionth of it); with labels in each class by itself.

    Returns:
      A ``Coreset`` of exactly ``size`` different indices [m] (fewer where something else ends the
      choice), class by class and in greedy order within each class, with weights [m] that sum to ``n``,
      or to the sum of the sample weights, gains [m], the objective, assignments [n] and the coverage;
      with a leading axis [p] for several problems.

    Raises:
      ValueError: on embeddings that are empty, sparse, complex, NaN or infinite, labels of the wrong
        length or out of range, a size outside ``[1, n]``, quotas that cannot be met, similarities that
        are never positive, an unknown metric or method, a budget too small (the
        message says what would do), positions, weights or costs out of range, what the method cannot do
        exactly, or an objective that float32 cannot hold.
      RuntimeError: in a process that was forked after the first call.
      UserWarning: a warning, on similarities that look like distances.

    Example:
      >>> points = [[0.0], [1.0], [10.0]]
      >>> coreset = select_coreset(points, 2)
      >>> coreset.indices.tolist(), coreset.weights.tolist(), float(coreset.objective)
      ([1, 2], [2.0, 1.0], 29.0)
      >>> larger = select_coreset(points, 3, initial=coreset.indices)
      >>> larger.indices.tolist(), float(larger.coverage)
      ([1, 2, 0], 1.0)
    """
    _check_names(metric, method, epsilon)
    asked = Asked(sample_weights, initial, candidates, costs, budget, stop_gain, coverage)
    check_method(asked, method)
    check_size(asked, size)
    metrics.check_gamma(metric, gamma)
    traced = not _checks.is_concrete(embeddings, labels, *asked)
    on_graph = _on_graph(embeddings, metric, neighbors, method, batched, traced=traced)
    if traced:
        return select_traced(
            embeddings, size, labels, num_classes, metric, gamma, quotas, method, epsilon, key, asked
        )
    not_forked()
    key = _checks.default_key(key)
    rows = rows_of(embeddings, metric)
    problem = shaped(rows, size, labels, num_classes, metric, quotas, batched, asked)
    if on_graph:
        _, block = plan_on_graph(rows, problem, neighbors, memory_budget)
        return solve_on_graph(rows, problem, metric, gamma, neighbors, block)
    plan = make_plan(problem.shape, method, memory_budget, epsilon)
    return solve(rows, problem, plan, metric, gamma, key)


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
    size: int | None = None,
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
    sample_weights: Any = None,
    initial: Any = None,
    candidates: Any = None,
    costs: Any = None,
    budget: float | None = None,
    stop_gain: float | None = None,
    coverage: float | None = None,
) -> Plan:
    """Say which method ``select_coreset`` would take and what it would need; nothing is computed.

    Args:
      embeddings: as in ``select_coreset``; only shapes are read, so ``jax.ShapeDtypeStruct`` will do.
      size, labels, num_classes, metric, neighbors, quotas, method: as there.
      memory_budget, epsilon, batched, sample_weights: as there.
      initial, candidates, costs, budget, stop_gain, coverage: as there.

    Raises:
      ValueError: when the budget is too small; the message says what would do.

    Example:
      >>> import jax
      >>> pool = jax.ShapeDtypeStruct((1_000_000, 32), "float32")
      >>> plan = plan_coreset(pool, 1_000)
      >>> plan.method, plan.exact, plan.memory < 256 * 2**20
      ('partitioned', False, True)
    """
    _check_names(metric, method, epsilon)
    asked = Asked(sample_weights, initial, candidates, costs, budget, stop_gain, coverage)
    check_method(asked, method)
    check_size(asked, size)
    on_graph = _on_graph(embeddings, metric, neighbors, method, batched)
    rows = rows_of(embeddings, metric)
    problem = shaped(rows, size, labels, num_classes, metric, quotas, batched, asked)
    if on_graph:
        return plan_on_graph(rows, problem, neighbors, memory_budget)[0]
    return make_plan(problem.shape, method, memory_budget, epsilon)


def _on_graph(
    embeddings: Any,
    metric: str,
    neighbors: int | None,
    method: str,
    batched: bool | None,
    *,
    traced: bool = False,
) -> bool:
    """Return whether the choice is on a graph, given or of neighbours; refuse what has none."""
    if neighbors is not None:
        check_neighbors(neighbors, metric, method, traced=traced)
        return True
    if metric != "precomputed" or not is_sparse(embeddings):
        return False
    check_listed_method(method, "a sparse matrix")
    _checks.require(
        not batched,
        f"batched is {batched} but similarities are one sparse matrix; pass the problems one by one.",
    )
    return True


def _check_names(metric: str, method: str, epsilon: float) -> None:
    _checks.one_of("metric", metric, metrics.METRICS)
    _checks.one_of("method", method, METHODS)
    _checks.in_range("epsilon", epsilon, 0.0, 0.999, open_low=True)
    _checks.require(
        not (metric == "precomputed" and method == "partitioned"),
        f"method is {method!r} but a given similarity matrix is read as a whole; choose "
        '"lazy" or "stochastic".',
    )
