"""Similarities of every kind against brute force in float64, on the full matrix."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.sparse
from oracles import dissimilarities

from crest_jax import Factored, select_coreset, select_coreset_sharded, select_coreset_stream
from crest_jax.coresets.neighbors import neighbor_graph

N, M, SIZE = 60, 30, 9
MORE = ("manhattan", "correlation", "rbf", "dot")
LABELS = np.arange(N) % 3


def slow(*args):
    return pytest.param(*args, marks=pytest.mark.slow)


SEEDS = [*range(6), *map(slow, range(6, 66))]


def similarities(x, metric, gamma=None):
    """Similarities [n, n] in float64; the largest dissimilarity is similarity 0."""
    if gamma is not None:
        return np.exp(-gamma * dissimilarities(x, "sqeuclidean"))
    values = dissimilarities(x, metric)
    return {"dot": 0.0, "exponential": 1.0, "rbf": 1.0}.get(metric, values.max()) - values


def follow(s, picks, gains, codes=None, free=None):
    """Check that every pick has the largest gain, to 1e-6, and that gains are what the picks add.

    Args:
      s: [n, m] similarities of rows to candidates.
      picks: [k].
      gains: [k].
      codes: [n] classes of a square matrix, each covered by its own picks.
      free: number of candidates; None: all.
    """
    codes = np.zeros(len(s), int) if codes is None else codes
    own_of = codes if s.shape[0] == s.shape[1] else np.zeros(s.shape[1], int)
    cover, left = np.zeros(len(s)), np.ones(s.shape[1], bool)
    noise = 2e-6 * np.abs(s).max()
    assert len(set(picks.tolist())) == len(picks)
    for pick, gain in zip(picks.tolist(), np.asarray(gains, np.float64).tolist(), strict=True):
        rows = codes == own_of[pick]
        adds = np.maximum(s[rows] - cover[rows, None], 0).sum(axis=0)
        best = adds[left & (own_of == own_of[pick])].max()
        assert best - adds[pick] <= 1e-6 * best + noise * (best < noise * len(s))
        assert gain == pytest.approx(adds[pick], rel=3e-6, abs=len(s) * noise)
        cover[rows] = np.maximum(cover[rows], s[rows, pick])
        left[pick] = False
    return cover.sum()


def counts(s, picks, codes=None, own=True):
    """Rows at the most similar pick of their class; ``own``: a pick stands for itself."""
    codes = np.zeros(len(s), int) if codes is None else codes
    among = s[:, picks] + (np.where(codes[:, None] == codes[picks][None], 0, -np.inf) if own else 0)
    nearest = among.argmax(axis=1)
    if own:
        nearest[picks] = np.arange(len(picks))
    return np.bincount(nearest, minlength=len(picks))


def points(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 5)) + rng.choice([0.0, 0.5, 3.0])
    x[rng.integers(0, N, 4)] = x[rng.integers(0, N, 4)]
    return np.float32(x * 10.0 ** rng.integers(-6, 6))


FORMS = {
    "dense": partial(select_coreset, method="dense"),
    "lazy": partial(select_coreset, method="lazy"),
    "sharded": lambda x, size, **options: select_coreset_sharded(
        x, size, mesh=jax.make_mesh((1,), ("data",)), **options
    ),
    "jit": lambda x, size, metric: jax.jit(lambda x: select_coreset(x, size, metric=metric))(x),
    "jit lazy": lambda x, size, metric: jax.jit(
        lambda x: select_coreset(x, size, metric=metric, method="lazy")
    )(x),
}


@pytest.mark.parametrize(
    ("metric", "form"),
    [(m, "dense") for m in MORE]
    + [("dot", "lazy"), *(slow(m, "lazy") for m in MORE[:3])]
    + [slow(m, f) for m in MORE for f in ("sharded", "jit", "jit lazy")],
)
def test_other_metrics_make_the_greedy_choice(metric, form, request):
    thorough = request.config.getoption("--slow")
    for seed in range(50 if thorough else 5):
        x = points(seed)
        if metric == "rbf":  # far rows are all alike in float32
            x = np.float32(3 * x / np.abs(x).max())
        s = similarities(x, metric)
        found = FORMS[form](x, SIZE, metric=metric)
        picks = np.asarray(found.indices)
        value = follow(s, picks, found.gains)
        assert float(found.objective) == pytest.approx(value, rel=1e-5)
        assert np.abs(found.weights - counts(s, picks)).max() <= 1, "but for ties"
        assert float(found.weights.sum()) == N
        if form in ("dense", "lazy") and thorough:
            found = FORMS[form](x, SIZE, metric=metric, labels=LABELS)
            s = s + (0 if metric in ("dot", "rbf") else top_within(x, metric) - s.max())
            follow(s, np.asarray(found.indices), found.gains, LABELS)


def top_within(x, metric):
    """The largest dissimilarity within a class."""
    return np.where(LABELS[:, None] == LABELS[None], dissimilarities(x, metric), 0).max()


@pytest.mark.slow
@pytest.mark.parametrize("metric", MORE)
def test_other_metrics_in_parts_in_streams_and_at_random(metric):
    x = np.float32(np.random.default_rng(0).normal(size=(2_000, 4)) + 1)
    s = similarities(x, metric)
    best = float(select_coreset(x, 12, metric=metric).objective)
    for found in (
        select_coreset(x, 12, metric=metric, method="stochastic"),
        select_coreset(x, 12, metric=metric, method="partitioned"),
        select_coreset_stream(x, 12, metric=metric, part=700),
        select_coreset_stream(iter([x[:900], x[900:]]), 12, metric=metric, part=700),
    ):
        picks = np.asarray(found.indices)
        assert np.maximum(s[:, picks].max(axis=1), 0).sum() >= 0.9 * best
        assert float(found.weights.sum()) == pytest.approx(2_000)
    found = select_coreset_stream(x, 12, metric=metric, part=700)
    assert np.abs(found.weights - counts(s, np.asarray(found.indices))).max() <= 1


def test_gamma_is_the_width_of_the_bell(request):
    thorough = request.config.getoption("--slow")
    x = np.float32(np.random.default_rng(1).normal(size=(N, 5)))
    for scale, gamma in ((1.0, 2.0), (1e25, 2e-50), (1e-25, 2e50))[: 3 if thorough else 1]:
        found = select_coreset(x * np.float32(scale), SIZE, metric="rbf", gamma=gamma, method="dense")
        follow(similarities(x, "rbf", 2.0), np.asarray(found.indices), found.gains)


def test_numbers_far_from_the_origin_keep_their_correlation():
    x = np.random.default_rng(2).normal(size=(N, 6))
    want = select_coreset(x, SIZE, metric="correlation")
    far = x + 1e7 * np.random.default_rng(3).normal(size=(N, 1))
    assert select_coreset(far, SIZE, metric="correlation").indices.tolist() == want.indices.tolist()
    x[:3] = [[0.1], [1e9], [0.0]]  # no correlation with any other row
    found = select_coreset(x, N, metric="correlation")
    assert found.weights.tolist() == [1.0] * N
    follow(similarities(x, "correlation"), np.asarray(found.indices), found.gains)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "lazy"])
def test_products_of_outer_products_need_none(method):
    rng = np.random.default_rng(4)
    left, right = np.float32(rng.normal(size=(N, 3))), np.float32(rng.normal(size=(N, 4)))
    outer = (left[:, :, None] * right[:, None, :]).reshape(N, -1)
    for metric in ("dot", "rbf"):
        found = select_coreset(Factored(left, right), SIZE, metric=metric, method=method)
        follow(similarities(outer, metric), np.asarray(found.indices), found.gains)


def given(seed, shape):
    rng = np.random.default_rng(seed)
    s = rng.normal(size=shape) * 10.0 ** rng.integers(-20, 20)
    return np.float32(np.round(s, 1) if seed % 3 == 0 else s)


@pytest.mark.parametrize(
    ("shape", "method"),
    [
        ((N, N), "dense"), ((N, M), "lazy"), ((M, N), "dense"), slow((N, N), "lazy"),
        slow((N, N), "stochastic"), slow((N, M), "dense"), slow((M, N), "lazy"),
        slow((M, N), "stochastic"),
    ],
)  # fmt: skip
def test_similarities_may_be_asymmetric_or_rectangular(shape, method, request):
    for seed in range(70 if request.config.getoption("--slow") else 4):
        s = given(seed, shape)
        found = select_coreset(s, SIZE, metric="precomputed", method=method)
        picks = np.asarray(found.indices)
        if method != "stochastic":
            value = follow(s.astype(np.float64), picks, found.gains)
            assert float(found.objective) == pytest.approx(value, rel=1e-5)
        assert found.weights.tolist() == counts(s, picks, own=shape[0] == shape[1]).tolist()
        if shape[0] == shape[1] and method != "stochastic" and seed % 2:
            found = select_coreset(s, SIZE, labels=LABELS, metric="precomputed", method=method)
            picks = np.asarray(found.indices)
            follow(s.astype(np.float64), picks, found.gains, LABELS)
            assert found.weights.tolist() == counts(s, picks, LABELS).tolist()


@pytest.mark.slow
def test_asymmetric_similarities_side_by_side_and_inside_jit():
    s = np.stack([given(seed, (N, N)) for seed in (1, 2)])
    alone = [select_coreset(one, SIZE, metric="precomputed") for one in s]
    together = select_coreset(s, SIZE, metric="precomputed")
    for method in ("dense", "lazy"):
        select = partial(select_coreset, size=SIZE, metric="precomputed", method=method)
        compiled = jax.jit(jax.vmap(select))(s)
        for k, one in enumerate(alone):
            for many in (together, compiled):
                assert many.indices[k].tolist() == one.indices.tolist()
                assert many.weights[k].tolist() == one.weights.tolist()
    tall = np.stack([given(seed, (N, M)) for seed in (1, 2)])
    many = select_coreset(tall, SIZE, metric="precomputed", batched=True)
    one = select_coreset(tall[1], SIZE, metric="precomputed")
    assert many.indices[1].tolist() == one.indices.tolist()


def sparse_problem(seed, shape=(N, N), density=0.15):
    rng = np.random.default_rng(seed)
    s = np.where(rng.random(shape) < density, rng.normal(size=shape) + 0.5, 0.0)
    s[0, 0] = 1.0
    return np.float32(np.round(s, 1) if seed % 3 == 0 else s)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(N, N), (N, M), (M, N)], ids=str)
def test_sparse_similarities_are_those_of_the_full_matrix(shape, seed):
    s = sparse_problem(seed, shape)
    form = ("csr", "csc", "coo", "lil", "dok", "bsr")[seed % 6]
    found = select_coreset(scipy.sparse.coo_array(s).asformat(form), SIZE, metric="precomputed")
    picks = np.asarray(found.indices)
    full = np.maximum(s.astype(np.float64), 0)
    value = follow(full, picks, found.gains)
    assert float(found.objective) == pytest.approx(value, rel=1e-5)
    covered = full[:, picks].max(axis=1) > 0
    nearest = full[:, picks].argmax(axis=1)
    if shape[0] == shape[1]:
        covered[picks], nearest[picks] = True, np.arange(SIZE)
    weights = np.bincount(nearest[covered], minlength=SIZE)
    np.testing.assert_allclose(found.weights, weights * (shape[0] / weights.sum()), rtol=1e-6)
    if seed >= 6:
        dense = select_coreset(full, SIZE, metric="precomputed", method="lazy")
        assert float(dense.objective) == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_similarities_by_class(seed):
    s, rng = sparse_problem(seed), np.random.default_rng(seed)
    labels = rng.integers(0, 3, N)
    found = select_coreset(scipy.sparse.csr_array(s), SIZE, labels=labels, metric="precomputed")
    full = np.maximum(s.astype(np.float64), 0)
    picks = np.asarray(found.indices)
    follow(full, picks, found.gains, labels)
    if seed >= 6:
        dense = select_coreset(full, SIZE, labels=labels, metric="precomputed", method="lazy")
        assert np.bincount(labels[picks]).tolist() == np.bincount(labels[dense.indices]).tolist()
    own = full[:, picks] * (labels[:, None] == labels[picks][None])
    nearest = np.where(own.max(axis=1) > 0, own.argmax(axis=1), -1)
    nearest[picks] = np.arange(SIZE)
    weights = np.bincount(nearest[nearest >= 0], minlength=SIZE)
    np.testing.assert_allclose(found.weights, weights * (N / weights.sum()), rtol=1e-6)


def test_rows_of_a_class_without_a_pick_go_to_the_pick_most_similar_to_them():
    s, labels = np.float64([[9, 0, 0, 0], [0, 8, 0, 0], [2, 3, 7, 0], [0, 0, 0, 7]]), [0, 0, 1, 1]
    options = {"labels": labels, "quotas": [2, 0], "metric": "precomputed"}
    found = select_coreset(scipy.sparse.csr_array(s), 2, **options)
    assert found.indices.tolist() == [0, 1]
    np.testing.assert_allclose(found.weights, [4 / 3, 8 / 3], rtol=1e-6)  # row 3 is similar to none


def test_entries_are_summed_where_given_twice_and_the_matrix_is_left_alone():
    data, at = np.int8([100, 100, 90, 0, -5]), ([0, 0, 1, 2, 2], [1, 1, 0, 0, 2])
    coo = scipy.sparse.coo_array((data, at), shape=(3, 3))
    csc = scipy.sparse.csc_array(coo.copy())
    found = select_coreset(coo, 2, metric="precomputed")
    assert found.gains.tolist() == [200.0, 90.0]
    assert found.indices.tolist() == [1, 0]
    assert coo.nnz == 5
    wide = csc.astype(np.float64)
    before = wide.data.copy()
    select_coreset(wide, 2, metric="precomputed")
    assert wide.data.tolist() == before.tolist()
    huge = scipy.sparse.eye_array(4) * 1e300
    with pytest.raises(ValueError, match="float32 cannot hold"):
        select_coreset(huge, 2, metric="precomputed")


def test_a_sparse_matrix_is_never_made_dense():
    n = 200_000
    at = np.arange(n)
    band = scipy.sparse.coo_array((np.ones(n), (at, (at + 1) % n)), shape=(n, n))
    band = (band + 2 * scipy.sparse.eye_array(n)).todia()
    found = select_coreset(band, 5, metric="precomputed")
    assert found.gains.tolist() == [3.0] * 5
    assert float(found.weights.sum()) == pytest.approx(n)


def graph_matrix(x, metric, k, labels=None):
    """Similarities [n, n] in float64 to the k nearest rows of the same class, and which they are."""
    values = dissimilarities(x, metric)
    rank = values.copy()
    if labels is not None:
        rank[labels[:, None] != labels[None]] = np.inf
    np.fill_diagonal(rank, -np.inf)
    near = np.argsort(rank, axis=1, kind="stable")[:, :k]
    inside = np.zeros(values.shape, bool)
    np.put_along_axis(inside, near, True, axis=1)
    inside &= rank < np.inf
    top = {"dot": 0.0, "exponential": 1.0, "rbf": 1.0}.get(metric, values[inside].max())
    return np.where(inside, np.maximum(top - values, 0), 0.0), inside


METRICS = (
    "euclidean", "dot",
    *map(slow, ("sqeuclidean", "manhattan", "cosine", "correlation", "exponential", "rbf")),
)  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_those_of_brute_force(metric, request):
    for seed in range(30 if request.config.getoption("--slow") else 3):
        rng = np.random.default_rng(seed)
        x = np.float32(rng.normal(size=(N, 5)) + rng.choice([0.0, 10.0]))
        labels = None if seed % 2 == 0 else rng.integers(0, 3, N)
        s, _ = graph_matrix(x, metric, 8, labels)
        found = select_coreset(x, SIZE, labels=labels, metric=metric, neighbors=8)
        picks = np.asarray(found.indices)
        value = follow(s, picks, found.gains, labels)
        assert float(found.objective) == pytest.approx(value, rel=1e-5)
        whole = -dissimilarities(x, metric)
        assert np.abs(found.weights - counts(whole, picks, labels)).max() <= 1, "but for ties"
        assert float(found.weights.sum()) == N


@pytest.mark.parametrize("kind", ["normal", "clusters", "duplicates", slow("grid")])
def test_the_graph_holds_the_nearest_rows_even_where_many_are_alike(kind):
    from crest_jax.coresets.inputs import make_pool

    rng = np.random.default_rng(5)
    x = rng.normal(size=(N, 3)) + 100
    if kind == "duplicates":
        x = x[rng.integers(0, 2, N)]
    elif kind == "clusters":  # bounds tell no rows of a cluster apart
        x = 1e3 * np.sign(x[:, :1] - 100) + 1e-2 * (x - 100)
    elif kind == "grid":
        x = rng.integers(0, 2, (N, 3)).astype(float)
    x = np.float32(x)
    pool = make_pool(x, "euclidean", batched=False)
    graph = neighbor_graph(pool.points, pool.metric, np.zeros(N, int), np.array([N]), 8, 16)
    candidates = np.repeat(np.arange(N), np.diff(graph.starts))
    found = np.zeros((N, N), bool)
    found[graph.rows, candidates] = True
    s, inside = graph_matrix(x, "euclidean", 8)
    # Equal distances go to the lower row; an entry with similarity 0 is none.
    if kind in ("normal", "clusters"):
        assert (found == (s > 0)).all()
    values = dissimilarities(x, "euclidean")
    lengths = np.sort(np.where(inside, values, np.inf), axis=1)[:, :8]
    mine = np.full((N, 8), graph.top)
    for row in range(N):
        own = np.sort(values[row, found[row]])
        mine[row, : len(own)] = own
    np.testing.assert_allclose(mine, lengths, atol=1e-5)


@pytest.mark.slow
def test_everything_as_neighbours_is_the_choice_without_a_graph():
    x = np.float32(np.random.default_rng(6).normal(size=(N, 5)))
    for metric in ("euclidean", "rbf"):
        want = select_coreset(x, SIZE, metric=metric)
        found = select_coreset(x, SIZE, metric=metric, neighbors=N)
        assert found.indices.tolist() == want.indices.tolist()
        assert found.weights.tolist() == want.weights.tolist()
        np.testing.assert_allclose(found.gains, want.gains, rtol=1e-5)
    tight = select_coreset(x, SIZE, neighbors=10, memory_budget=400_000)
    assert tight.indices.tolist() == select_coreset(x, SIZE, neighbors=10).indices.tolist()


@pytest.mark.slow
def test_peers_choose_the_same_from_a_sparse_graph():
    why = "pip install -e '.[peers]'"
    FacilityLocationSelection = pytest.importorskip("apricot", reason=why).FacilityLocationSelection
    FacilityLocationFunction = pytest.importorskip("submodlib", reason=why).FacilityLocationFunction
    x = np.random.default_rng(7).normal(size=(300, 4))
    s, _ = graph_matrix(x, "euclidean", 20)
    s = np.maximum(s, s.T)  # submodlib and apricot read rows as columns
    found = select_coreset(scipy.sparse.csr_matrix(s), 20, metric="precomputed")
    theirs = FacilityLocationSelection(20, metric="precomputed", optimizer="lazy", verbose=False)
    assert theirs.fit(scipy.sparse.csr_matrix(s)).ranking.tolist() == found.indices.tolist()
    np.testing.assert_allclose(theirs.gains, found.gains, rtol=1e-5)
    function = FacilityLocationFunction(
        n=300, data=x, mode="sparse", num_neighbors=20, metric="euclidean", separate_rep=False
    )
    other = function.maximize(
        budget=20, optimizer="LazyGreedy", stopIfZeroGain=False, show_progress=False
    )
    graph = scipy.sparse.csr_matrix(function.sijs.toarray())
    found = select_coreset(graph, 20, metric="precomputed")
    value = np.maximum(graph.toarray()[:, [row for row, _ in other]].max(axis=1), 0).sum()
    assert float(found.objective) >= 0.999 * value
