"""What ``select_coreset`` takes beside a size, with every kind of similarity, against brute force."""

import jax
import numpy as np
import pytest
import scipy.sparse
from greedy_oracle import (
    FIXED,
    Replay,
    best_by_costs,
    check,
    draw_positions_and_weights,
    replay_of,
)
from oracles import dissimilarities

from crest_jax import plan_coreset, select_coreset, select_coreset_sharded, select_coreset_stream

N, D, M, K, NEAR = 40, 3, 24, 12, 8
POINTS = ("manhattan", "correlation", "rbf", "dot")
FORMS = (*POINTS, "asymmetric", "rectangular", "sparse", "sparse wide", "neighbors", "neighbors dot")
KINDS = ("weights", "initial", "candidates", "costs", "stop_gain", "coverage", "all")
ELSEWHERE = ("earlier", "others", "both")


def pool(form, rng):
    """The pool of a form, and the options that say what it is."""
    x = (rng.normal(size=(N, D)) * rng.choice([0.1, 1, 5], (N, 1))).astype(np.float32)
    if form in POINTS:
        return x, {"metric": form}
    if form.startswith("neighbors"):
        return x, {"metric": "dot" if form.endswith("dot") else "euclidean", "neighbors": NEAR}
    if form == "asymmetric":
        return rng.normal(size=(N, N)).astype(np.float32), {"metric": "precomputed"}
    shape = (N, M) if form in ("rectangular", "sparse wide") else (N, N)
    s = rng.normal(size=shape).astype(np.float32)
    if form != "rectangular":
        s = scipy.sparse.csr_array(np.where(rng.random(shape) < 0.2, s, 0))
    return s, {"metric": "precomputed"}


def build(x, asked):
    """The replay of a pool."""
    if scipy.sparse.issparse(x):
        values = -np.maximum(x.toarray().astype(np.float64), 0)
        near = np.where(values < 0, values, np.inf)
        return Replay(values, 0.0, asked, inside=x.shape[0] == x.shape[1], near=near)
    if asked["metric"] == "precomputed":
        return Replay(-x.astype(np.float64), 0.0, asked, inside=x.shape[0] == x.shape[1])
    if "neighbors" not in asked:
        return replay_of(x, asked)
    near = dissimilarities(x, asked["metric"])
    labels = asked.get("labels", np.zeros(N, int))
    ranks = np.where(labels[:, None] == labels[None, :], near, np.inf)
    np.fill_diagonal(ranks, -np.inf)
    places = np.argsort(ranks, axis=1, kind="stable")[:, :NEAR]
    inside = np.zeros((N, N), bool)
    np.put_along_axis(inside, places, True, axis=1)
    top = FIXED.get(asked["metric"], near[inside].max())
    return Replay(np.where(inside, np.minimum(near, top), top), top, asked, near=near)


def problem(form, kind, seed):
    """Arguments of a random problem."""
    rng = np.random.default_rng(seed)
    x, asked = pool(form, rng)
    width = x.shape[1] if asked["metric"] == "precomputed" else N
    asked["size"] = 10
    if width == N and kind not in ("costs", *ELSEWHERE) and rng.random() < 0.5:
        asked["labels"] = rng.permutation(np.arange(N) % 3)
    draw_positions_and_weights(rng, kind, N, width, asked)
    if kind in ("earlier", "both"):
        asked["initial"] = rng.normal(size=(5, D)).astype(np.float32)
    if kind in ("others", "both"):
        asked["candidates"] = (2 * rng.normal(size=(K, D))).astype(np.float32)
    if kind == "costs":
        asked["costs"] = rng.integers(1, 6, width) if rng.random() < 0.5 else rng.uniform(0.1, 2, width)
        asked.update(budget=float(rng.integers(6, 20)), size=None)
    if kind in ("stop_gain", "coverage", "all"):
        asked["size"] = None if kind != "all" else 14
    if kind in ("coverage", "all"):
        asked["coverage"] = float(rng.uniform(0.3, 0.99))
    if kind == "stop_gain":
        one = build(x, {**asked, "size": 1})
        asked["stop_gain"] = float(rng.uniform(0.01, 0.3) * max(run.gains().max() for run in one.runs))
    return x, asked


def solve(form, kind, seed, method):
    x, asked = problem(form, kind, seed)
    listed = scipy.sparse.issparse(x) or "neighbors" in asked
    found = select_coreset(x, method="lazy" if listed else method, **asked)
    check(build(x, asked), asked, found, exact=method != "stochastic")
    if kind == "costs":
        costs = np.asarray(asked["costs"], np.float64)
        best = best_by_costs(lambda: build(x, asked), costs, asked["budget"])
        assert float(found.objective) >= best * (1 - 1e-5)


QUICK = ("dot", "asymmetric", "rectangular", "sparse", "neighbors dot")


def slow_unless(quick, values):
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


@pytest.mark.parametrize("form", slow_unless(QUICK, FORMS))
def test_a_problem_of_each_form(form):
    at = FORMS.index(form)
    solve(form, "all", 3 * at, ("dense", "lazy")[at % 2])


@pytest.mark.parametrize("kind", slow_unless(["costs"], ["stop_gain", "costs"]))
def test_graphs_end_a_choice_and_count_costs(kind):
    solve("sparse", kind, 5, "lazy")


@pytest.mark.parametrize("kind", slow_unless(["both"], ELSEWHERE))
def test_products_with_rows_of_elsewhere(kind):
    solve("dot", kind, 5, ("dense", "lazy")[ELSEWHERE.index(kind) % 2])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "lazy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_many_problems(form, kind, method):
    for seed in range(30):
        solve(form, kind, seed, method)
    jax.clear_caches()  # compiled programs of all together exhaust a process's memory maps


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "lazy"])
@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("form", POINTS)
def test_many_problems_with_rows_of_elsewhere(form, kind, method):
    for seed in range(30):
        solve(form, kind, seed, method)
    jax.clear_caches()  # compiled programs of all together exhaust a process's memory maps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "initial", "candidates", "coverage"])
@pytest.mark.parametrize("form", ["dot", "rbf", "asymmetric", "rectangular"])
def test_stochastic_greedy_obeys_the_same_rules(form, kind):
    for seed in range(10):
        solve(form, kind, seed, "stochastic")


X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [None, np.arange(N) % 3], ids=["whole", "by class"])
def test_the_share_covered_of_products_wherever_all_pairs_are_compared(labels):
    asked = {"metric": "dot", "size": 6, "labels": labels}
    run = build(X, {name: value for name, value in asked.items() if value is not None})
    largest = sum(own.largest for own in run.runs)
    mesh = jax.make_mesh((1,), ("data",))
    classes = {} if labels is None else {"num_classes": 3}
    inside = jax.jit(lambda x: select_coreset(x, method="lazy", **asked, **classes))
    for found in (
        inside(X), select_coreset(X, **asked), select_coreset_sharded(X, mesh=mesh, **asked)
    ):  # fmt: skip
        assert float(found.coverage) == pytest.approx(float(found.objective) / largest, rel=1e-5)
        assert float(found.objective) < 0.999 * largest
    if labels is None:
        parts = select_coreset(X, method="partitioned", **asked)
        stream = select_coreset_stream(X, 6, metric="dot")
        assert parts.coverage is None
        assert stream.coverage is None


WIDE = np.abs(X @ X[:M].T)
SPARSE = scipy.sparse.csr_array(np.maximum(X @ X.T, 0))
REFUSED = [
    (X, {"neighbors": 5, "initial": X[:2]}, "neighbors is 5 beside initial or candidates that"),
    (X, {"neighbors": 5, "candidates": X[:9]}, "neighbors is 5 beside initial or candidates"),
    (X, {"neighbors": 5, "method": "dense", "initial": [1]}, "method is 'dense' but a graph of"),
    (SPARSE, {"metric": "precomputed", "initial": X[:2]}, "initial are rows of elsewhere, which"),
    (SPARSE, {"metric": "precomputed", "batched": True, "initial": [1]},
     "batched is True but similarities are one sparse matrix"),
    (SPARSE, {"metric": "precomputed", "sample_weights": np.ones(9)}, r"shape \(40,\)"),
    (WIDE, {"metric": "precomputed", "labels": np.arange(N) % 2}, "labels are given but similarities"),
    (WIDE, {"metric": "precomputed", "sample_weights": np.ones(M)}, r"must have shape \(40,\)"),
    (WIDE, {"metric": "precomputed", "initial": [30]}, r"initial hold 30 but .* \[0, 24\)"),
    (WIDE, {"metric": "precomputed", "candidates": np.ones(N, bool)}, r"must have shape \(24,\)"),
    (WIDE, {"metric": "precomputed", "costs": np.ones(N), "budget": 3}, r"must have shape \(24,\)"),
    (WIDE, {"metric": "precomputed", "size": 25}, "size is 25 but the pool holds 24 columns"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "asked", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_go_together_is_refused_at_the_call(rows, asked, message):
    for call in (select_coreset, plan_coreset):
        with pytest.raises(ValueError, match=message) as error:
            call(rows, **{"size": 5, **asked})
        assert str(error.value).endswith(".")
