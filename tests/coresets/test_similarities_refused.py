"""Wrong uses of metrics, given similarities and graphs: each is one sentence, before any long work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from crest_jax import (
    Factored,
    plan_coreset,
    select_coreset,
    select_coreset_sharded,
    select_coreset_stream,
)

X = np.float32(np.random.default_rng(0).normal(size=(20, 4)))
Y = np.arange(20) % 2
PAIR = Factored(X, X)
S = scipy.sparse.csr_array(np.maximum(X @ X.T, 0))
RBF, GIVEN = {"metric": "rbf"}, {"metric": "precomputed"}


def entries(values, shape=(20, 20)):
    """A sparse matrix with these values in its first row."""
    places = (np.zeros(len(values), int), np.arange(len(values)))
    return scipy.sparse.coo_array((np.asarray(values), places), shape=shape)


REFUSED = [
    (X, {"gamma": 0.5}, "gamma is 0.5 but metric is 'euclidean', which has none; pass metric"),
    (X, {"metric": "exponential", "gamma": 1}, "gamma is 1 but metric is 'exponential'.*; pass"),
    (X, {**RBF, "gamma": 0.0}, "gamma is 0.0 but must be a positive number; 1 / d is usual"),
    (X, {**RBF, "gamma": -1}, "gamma is -1 but must be a positive number;"),
    (X, {**RBF, "gamma": float("nan")}, "gamma is nan but must be a positive number;"),
    (X, {**RBF, "gamma": float("inf")}, "gamma is inf but must be a positive number;"),
    (X, {**RBF, "gamma": "auto"}, "gamma is 'auto' but must be a positive number;"),
    (X, {**RBF, "gamma": True}, "gamma is True but must be a positive number;"),
    (X, {**RBF, "gamma": np.ones(4)}, "gamma is a float64 array.* but must be a positive number;"),
    (X, {"metric": "l1"}, "metric is 'l1' but must be one of euclidean.*; choose"),
    (PAIR, {"metric": "manhattan"}, "metric is 'manhattan' but embeddings are Factored.*; pass"),
    (PAIR, {"metric": "correlation"}, "metric is 'correlation' but embeddings are Factored.*; pass"),
    (PAIR, GIVEN, r"shapes \(20, 4\) and \(20, 4\) but with metric.* similarities.*; pass one matrix"),
    (X, {**GIVEN, "labels": Y}, r"labels are given but similarities have shape \(20, 4\).*; leave"),
    (-np.abs(X), GIVEN, "one must be positive.*; pass s - s.min"),
    (X, {**GIVEN, "method": "partitioned"}, "is read as a whole; choose"),
    (X, {**GIVEN, "size": 5}, "size is 5 but the pool holds 4 columns and no column is chosen twice"),
    (X * np.nan, GIVEN, "20 of 20 examples are NaN or infinite.*; check"),
    (S, {}, "embeddings are a sparse matrix .* but must be dense; pass .toarray.*metric=.precomputed"),
    (S, {"metric": "dot"}, "embeddings are a sparse matrix .* but must be dense; pass"),
    ([S, S], GIVEN, "similarities are a sparse matrix.*; pass"),
    (S, {**GIVEN, "method": "dense"}, "method is 'dense' but a sparse matrix is.*; choose"),
    (S, {**GIVEN, "method": "stochastic"}, "method is 'stochastic' but a sparse matrix.*; choose"),
    (S, {**GIVEN, "method": "partitioned"}, "method is 'partitioned' but a .*; choose"),
    (S, {**GIVEN, "size": 21}, "size is 21 but the pool holds 20 examples.*; ask for at most 20"),
    (S, {**GIVEN, "size": 0}, "size is 0 but must be an integer of at least 1; pass"),
    (S, {**GIVEN, "batched": True}, "batched is True but similarities are one sparse.*; pass"),
    (S, {**GIVEN, "memory_budget": 99}, "memory_budget is 99 bytes but 'lazy' needs at least.*; raise"),
    (S, {**GIVEN, "labels": Y[:9]}, r"labels have shape \(9,\) but must have shape \(20,\).*; pass"),
    (S, {**GIVEN, "quotas": "equal"}, "quotas are 'equal' but there are no labels.*; pass"),
    (S[:, :9], {**GIVEN, "labels": Y}, r"labels are given but .* shape \(20, 9\).*; leave labels out"),
    (S * 1j, GIVEN, "similarities have dtype complex64 but must be real.*; pass"),
    (entries([1.0, np.nan]), GIVEN, "1 of 2 similarities are NaN or infinite but all.*; drop"),
    (entries([1.0, np.inf, np.inf]), GIVEN, "2 of 3 similarities are NaN or infinite.*; drop"),
    (entries([-1.0, -2.0]), GIVEN, "similarities lie between -2 and 0 but one must be.*; pass"),
    (entries([0.0]), GIVEN, "similarities hold no entry but 0 but one must be positive.*; store"),
    (entries([], (20, 0)), GIVEN, r"sparse array of shape \(20, 0\) but must be.*; pass"),
    (scipy.sparse.coo_array(X[0]), GIVEN, r"sparse array of shape \(4,\) but must be .*; pass"),
    (X, {"neighbors": 1}, "neighbors is 1 but must be an integer of at least 2.*; pass|usual"),
    (X, {"neighbors": True}, "neighbors is True but must be an integer of at least 2"),
    (X, {"neighbors": 5.0}, "neighbors is 5.0 but must be an integer of at least 2"),
    (X, {"neighbors": "5"}, "neighbors is '5' but must be an integer of at least 2"),
    (X, {"neighbors": 21}, "neighbors is 21 but the pool holds 20 examples; ask for at most 20"),
    (X @ X.T, {**GIVEN, "neighbors": 5}, "neighbors is 5 but the similarities are given; keep"),
    (S, {**GIVEN, "neighbors": 5}, "neighbors is 5 but the similarities are given; keep"),
    (X, {"neighbors": 5, "method": "dense"}, "method is 'dense' but a graph of neighbours.*; choose"),
    (X, {"neighbors": 5, "method": "partitioned"}, "method is 'partitioned' but a graph.*; choose"),
    (X[None], {"neighbors": 5, "batched": True}, r"neighbors are asked for.*\[p, n, d\].*; pass"),
    (X, {"neighbors": 5, "memory_budget": 9}, "memory_budget is 9 bytes but.* needs at least.*; raise"),
    (PAIR, {"neighbors": 5, "metric": "manhattan"}, "metric is 'manhattan' but embeddings are.*; pass"),
]  # fmt: skip


@pytest.mark.parametrize(("embeddings", "options", "message"), REFUSED)
def test_wrong_uses_are_refused_in_one_sentence(embeddings, options, message):
    with pytest.raises(ValueError, match=message) as error:
        select_coreset(embeddings, **{"size": 3, **options})
    check(str(error.value))


def check(text):
    assert len(text) < 400
    assert "\n" not in text
    assert text.endswith(".")
    assert text.count(". ") == 0, "one sentence"
    assert "; " in text, "with a remedy"


TRACED = [
    (X, {"neighbors": 5}, "neighbors is 5 but inside jit and vmap no graph.*; select outside"),
    (X, GIVEN, r"similarities have shape \(20, 4\) but must be square inside jit; select outside"),
    (PAIR, {"metric": "correlation"}, "metric is 'correlation' but embeddings are Factored.*; pass"),
    (
        PAIR,
        {"metric": "manhattan", "method": "lazy"},
        "metric is 'manhattan' but embeddings are.*; pass",
    ),
    (X, {"gamma": 2.0}, "gamma is 2.0 but metric is 'euclidean'.*; pass"),
]


@pytest.mark.parametrize(("embeddings", "options", "message"), TRACED)
def test_wrong_uses_inside_jit(embeddings, options, message):
    embeddings = jax.tree.map(jnp.asarray, embeddings)
    with pytest.raises(ValueError, match=message) as error:
        jax.jit(lambda x: select_coreset(x, 3, **options))(embeddings)
    check(str(error.value))


def test_a_sparse_matrix_beside_traced_labels():
    with pytest.raises(
        ValueError, match=r"sparse matrix beside other arrays inside jit.*; select"
    ) as error:
        jax.jit(lambda y: select_coreset(S, 3, labels=y, num_classes=2, **GIVEN))(Y)
    check(str(error.value))


def test_plans_streams_and_meshes_say_the_same():
    mesh = jax.make_mesh((1,), ("data",))
    for call, message in (
        (lambda: plan_coreset(S, 3, method="dense", **GIVEN), "method is 'dense' but a sparse"),
        (lambda: plan_coreset(X, 3, neighbors=50), "neighbors is 50 but the pool holds 20"),
        (lambda: plan_coreset(X, 3, neighbors=5, memory_budget=1), "needs at least"),
        (lambda: select_coreset_stream(X, 3, gamma=1.0), "gamma is 1.0 but metric"),
        (lambda: select_coreset_sharded(X, 3, mesh=mesh, gamma=1.0), "gamma is 1.0 but metric"),
        (lambda: select_coreset_sharded(X, 21, mesh=mesh), "size is 21 but the pool holds 20"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        check(str(error.value))


def test_a_plan_tells_what_lists_need():
    plan = plan_coreset(S, 3, **GIVEN)
    assert plan.method == "lazy"
    assert plan.exact
    with pytest.raises(ValueError, match="needs at least"):
        select_coreset(S, 3, memory_budget=plan.memory - 1, **GIVEN)
    found = select_coreset(S, 3, memory_budget=plan.memory, **GIVEN)
    assert found.indices.shape == (3,)
    shape = jax.ShapeDtypeStruct((100_000, 32), jnp.float32)
    assert plan_coreset(shape, 50, neighbors=20).memory < 256 * 2**20
