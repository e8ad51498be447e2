"""What ``select_coreset`` takes beside a size, on random problems, against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from greedy_oracle import best_by_costs, check, draw_positions_and_weights, replay_of
from oracles import dissimilarities

from crest_jax import Factored, select_coreset

N, D, K = 40, 3, 12
METRICS = ("euclidean", "sqeuclidean", "cosine", "exponential", "precomputed")
KINDS = (
    "weights",
    "initial",
    "earlier",
    "candidates",
    "others",
    "costs",
    "stop_gain",
    "coverage",
    "all",
)
EXACT = ("dense", "lazy")


def problem(kind, seed):
    """Arguments of a random problem: embeddings, and what is asked for."""
    rng = np.random.default_rng(seed)
    plain = kind in ("earlier", "others")
    metric = METRICS[int(rng.integers(4 if plain else 5))]
    x = rng.normal(size=(N, D)) * rng.choice([0.1, 1, 5], (N, 1))
    if metric == "precomputed":
        s = x @ x.T + rng.normal(size=(N, N))
        x = (s + s.T) / 2
    asked = {"metric": metric, "size": 10}
    if kind not in ("earlier", "others", "costs") and rng.random() < 0.5:
        asked["labels"] = rng.permutation(np.arange(N) % 3)
    draw_positions_and_weights(rng, kind, N, N, asked)
    if kind == "earlier":
        asked["initial"] = rng.normal(size=(5, D)) * 2
    if kind == "others":
        asked["candidates"] = rng.normal(size=(K, D)) * 2
    if kind == "costs":
        asked["costs"] = rng.integers(1, 6, N) if rng.random() < 0.5 else rng.uniform(0.1, 2, N)
        asked["budget"] = float(rng.integers(6, 20))
        asked["size"] = None
    if kind in ("stop_gain", "coverage", "all"):
        asked["size"] = None if kind != "all" else 20
    x = x.astype(np.float32)
    asked = {k: v.astype(np.float32) if getattr(v, "ndim", 0) == 2 else v for k, v in asked.items()}
    if kind in ("coverage", "all"):
        asked["coverage"] = float(rng.uniform(0.3, 0.99))
    if kind == "stop_gain":
        one = replay_of(x, {**asked, "size": 1})
        asked["stop_gain"] = float(rng.uniform(0.01, 0.3) * max(run.gains().max() for run in one.runs))
    return x, asked


def solve(kind, seed, method):
    x, asked = problem(kind, seed)
    found = select_coreset(x, method=method, **asked)
    check(replay_of(x, asked), asked, found, exact=method in EXACT)
    if kind == "costs":
        best = best_by_costs(
            lambda: replay_of(x, asked), np.asarray(asked["costs"], np.float64), asked["budget"]
        )
        assert float(found.objective) >= best * (1 - 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_of_each_kind(kind):
    solve(kind, 7 * KINDS.index(kind) + 1, EXACT[KINDS.index(kind) % 2])


@pytest.mark.slow
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_problems_of_each_kind(kind, method):
    for seed in range(200):
        solve(kind, seed, method)
        if seed % 50 == 49:
            jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["weights", "initial", "earlier", "candidates", "others", "coverage", "all"]
)
def test_stochastic_greedy_obeys_the_same_rules(kind):
    for seed in range(40):
        solve(kind, seed, "stochastic")


X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.mark.parametrize("method", EXACT)
def test_picks_of_a_size_are_the_first_of_any_larger_size(method):
    small, large = (select_coreset(X, size, method=method) for size in (5, 10))
    assert large.indices[:5].tolist() == small.indices.tolist()
    grown = select_coreset(X, 10, method=method, initial=small.indices)
    none = select_coreset(X, 4, method=method, initial=[])
    assert none.indices.tolist() == select_coreset(X, 4, method=method).indices.tolist()
    assert grown.indices.tolist() == large.indices.tolist()
    assert grown.weights.tolist() == large.weights.tolist()
    assert grown.assignments.tolist() == large.assignments.tolist()
    np.testing.assert_allclose(grown.gains, large.gains, rtol=1e-6)


def test_a_given_matrix_takes_candidates_and_first_picks():
    s = X @ X.T
    asked = {"metric": "precomputed", "size": 10, "candidates": np.arange(20), "initial": [30, 5]}
    found = select_coreset(s, method="lazy", **asked)
    check(replay_of(s, asked), asked, found)
    assert found.indices.tolist() == select_coreset(s, method="dense", **asked).indices.tolist()


@pytest.mark.parametrize("method", ["dense", "lazy", "stochastic", "partitioned", "graph"])
def test_picks_of_classes_that_weigh_nothing_share_the_total_alike(method):
    points = np.random.default_rng(0).normal(size=(10, 3))
    labels, own = np.repeat([0, 1], [7, 3]), np.repeat([0.0, 2.0], [7, 3])
    form = {"neighbors": 3} if method == "graph" else {"method": method}
    for size in (1, 3):
        found = select_coreset(
            points, size, labels=labels, sample_weights=own, quotas=[size, 0], **form
        )
        assert (labels[found.indices] == 0).all()
        assert float(found.weights.sum()) == pytest.approx(6)
    alone = select_coreset(points, 1, labels=labels, sample_weights=own, **form)
    assert alone.weights.tolist() == [6.0]


def test_proportional_quotas_make_room_for_first_picks():
    labels = np.arange(N) % 4
    found = select_coreset(X, 12, labels=labels, initial=[0, 4, 8, 12, 16, 20], method="dense")
    assert np.bincount(labels[found.indices]).tolist() == [6, 2, 2, 2]


def test_whole_numbers_cost_exactly_what_they_say():
    costs = np.full(N, 3)
    found = select_coreset(X, costs=costs, budget=3 * 10**7, method="dense")
    assert len(found.indices) == N
    tenth = select_coreset(X, costs=np.full(N, 0.1), budget=0.3, method="dense")
    assert len(tenth.indices) == 3
    assert len(select_coreset(X, costs=costs, budget=11, method="dense").indices) == 3


def test_inside_jit_weights_first_picks_and_a_mask_do_the_same():
    mask, weights = np.arange(N) % 2 == 0, np.arange(N) / 7.0
    asked = {"sample_weights": weights, "candidates": mask, "initial": np.array([3, 4])}
    inside = jax.jit(lambda x, asked: select_coreset(x, 6, **asked))(X, asked)
    outside = select_coreset(X, 6, method="dense", **asked)
    assert inside.indices.tolist() == outside.indices.tolist()
    assert inside.assignments.tolist() == outside.assignments.tolist()
    np.testing.assert_allclose(inside.weights, outside.weights, rtol=1e-6)
    np.testing.assert_allclose(inside.coverage, outside.coverage, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", EXACT)
def test_several_problems_are_solved_one_by_one(method):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, N, D)).astype(np.float32)
    asked = {
        "sample_weights": rng.random((3, N)),
        "initial": np.stack([rng.permutation(N)[:3] for _ in range(3)]),
        "candidates": rng.random((3, N)) < 0.8,
    }
    found = select_coreset(x, 8, method=method, batched=True, **asked)
    for p in range(3):
        own = {"metric": "euclidean", "size": 8, **{name: value[p] for name, value in asked.items()}}
        check(replay_of(x[p], own), own, jax.tree.map(lambda leaf, p=p: leaf[p], found))


@pytest.mark.slow
def test_outer_products_take_rows_of_elsewhere():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(N, 2)).astype(np.float32), rng.normal(size=(N, 3)).astype(np.float32)
    whole = np.einsum("na,nb->nab", a, b).reshape(N, -1)
    for method in EXACT:
        got = select_coreset(Factored(a[5:], b[5:]), 6, initial=Factored(a[:5], b[:5]), method=method)
        want = select_coreset(whole[5:], 6, initial=whole[:5], method=method)
        assert got.indices.tolist() == want.indices.tolist()
        assert got.weights.tolist() == want.weights.tolist()


@pytest.mark.slow
def test_parts_count_sample_weights():
    x = np.random.default_rng(3).normal(size=(20_000, 3)).astype(np.float32)
    near = np.where(x[:, 0] > 0, 1.0, 0.0)
    found = select_coreset(x, 50, method="partitioned", sample_weights=near)
    assert float(found.weights.sum()) == pytest.approx(near.sum())
    values = np.linalg.norm(x[:, None] - x[None, np.asarray(found.indices)], axis=2)
    expected = np.bincount(values.argmin(axis=1), near, minlength=50)
    np.testing.assert_allclose(found.weights, expected, atol=1e-3)
    alone = select_coreset(x[near > 0], 50, method="lazy")
    heads = x[near > 0][np.asarray(alone.indices)]
    best = np.linalg.norm(x[near > 0][:, None] - heads[None], axis=2).min(axis=1).mean()
    assert values[near > 0].min(axis=1).mean() < 1.15 * best


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
def test_peers_start_from_the_same_subset_and_pay_the_same_costs():
    apricot = pytest.importorskip("apricot")
    submodlib = pytest.importorskip("submodlib")
    values = dissimilarities(X, "euclidean")
    s = values.max() - values
    first = np.array([3, 9, 11])
    ours = select_coreset(s.astype(np.float32), 10, metric="precomputed", initial=first)
    model = apricot.FacilityLocationSelection(
        7, metric="precomputed", initial_subset=first, optimizer="naive"
    )  # its lazy form breaks ties in another order
    assert model.fit(s).ranking.tolist() == ours.indices[3:].tolist()
    costs = np.random.default_rng(4).integers(1, 5, N)
    found = select_coreset(s.astype(np.float32), metric="precomputed", costs=costs, budget=20)
    function = submodlib.FacilityLocationFunction(n=N, sijs=s, separate_rep=False, mode="dense")
    theirs = [
        [row for row, _ in function.maximize(
            budget=20, optimizer="NaiveGreedy", costs=costs.tolist(), costSensitiveGreedy=by_ratio,
            show_progress=False,
        )]
        for by_ratio in (False, True)
    ]  # fmt: skip
    reached = max(s[:, rows].max(axis=1).sum() for rows in theirs)
    assert float(found.objective) >= reached * (1 - 1e-6)


@pytest.mark.parametrize("labels", [None, np.arange(100) % 3])
def test_a_share_of_products_is_reached_by_the_same_picks_of_both_methods(labels):
    x = np.random.default_rng(3).normal(size=(100, 3)).astype(np.float32)
    size = 30 if labels is not None else None
    lazy, dense = (
        select_coreset(x, size, labels=labels, metric="dot", coverage=0.9, method=method)
        for method in ("lazy", "dense")
    )
    assert lazy.indices.tolist() == dense.indices.tolist()
    assert len(lazy.indices) < 30
    np.testing.assert_allclose(lazy.coverage, dense.coverage, rtol=1e-5)


def test_the_share_covered_is_1_only_with_every_row():
    assert float(select_coreset(X, N, method="dense").coverage) == pytest.approx(1, abs=1e-6)
    assert float(select_coreset(jnp.zeros((N, D)), 3, method="dense").coverage) == 1
