"""The estimator for scikit-learn: the choice of ``select_coreset`` under its names."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from crest_jax import select_coreset
from crest_jax.sklearn import CoresetSelector

X = np.float32(np.random.default_rng(0).normal(size=(40, 3)))
Y = np.array(["a", "b"])[np.arange(40) % 2]
S = scipy.sparse.csr_array(np.maximum(X @ X.T, 0))


@pytest.mark.parametrize(
    ("pool", "labels", "options"),
    [
        (X, None, {}),
        (X, Y, {"quotas": {"a": 5, "b": 2}, "metric": "cosine"}),
        (X, None, {"metric": "rbf", "gamma": 0.5}),
        (S, Y, {"metric": "precomputed"}),
        pytest.param(X, None, {"neighbors": 8, "metric": "manhattan"}, marks=pytest.mark.slow),
    ],
)
def test_the_estimator_finds_what_select_coreset_does(pool, labels, options):
    want = select_coreset(pool, 7, labels=labels, **options)
    found = CoresetSelector(7, **options).fit(pool, labels)
    assert found.indices_.tolist() == want.indices.tolist()
    assert found.weights_.tolist() == want.weights.tolist()
    assert found.gains_.tolist() == want.gains.tolist()
    assert found.objective_ == float(want.objective)
    assert (found.n_samples_, found.n_features_in_) == pool.shape
    assert found.get_support(indices=True).tolist() == sorted(want.indices.tolist())
    assert np.flatnonzero(found.get_support()).tolist() == sorted(want.indices.tolist())
    chosen = found.transform(pool)
    rows = np.asarray(want.indices)
    if pool is S:
        assert (chosen.toarray() == S.toarray()[rows]).all()
    else:
        assert (chosen == X[rows]).all()
    assert list(found.transform(Y.tolist())) == Y[rows].tolist()
    again = clone(found).set_params(n_select=4)
    assert again.get_params()["metric"] == options.get("metric", "euclidean")
    assert again.get_params()["n_select"] == 4
    assert not hasattr(again, "indices_")


def test_every_setting_reaches_the_choice():
    drawn = [
        CoresetSelector(7, method="stochastic", epsilon=0.5, random_state=seed).fit(X).indices_.tolist()
        for seed in (0, 1, 1)
    ]
    assert drawn[0] != drawn[1] == drawn[2]
    assert CoresetSelector(7, method="stochastic", epsilon=0.5).fit(X).indices_.tolist() == drawn[0]
    rows = CoresetSelector(7).fit_transform(X)
    assert (rows == X[CoresetSelector(7).fit(X).indices_]).all()
    each = np.arange(40) / 7
    found, want = CoresetSelector(7).fit(X, None, each), select_coreset(X, 7, sample_weights=each)
    assert found.indices_.tolist() == want.indices.tolist()
    assert found.weights_.tolist() == want.weights.tolist()
    assert found.assignments_.tolist() == want.assignments.tolist()
    assert found.coverage_ == float(want.coverage)
    assert (CoresetSelector(7).fit_transform(X, sample_weight=each) == X[found.indices_]).all()


@pytest.mark.parametrize(
    ("options", "pool", "message"),
    [
        ({"n_select": 41}, X, "size is 41 but the pool holds 40 examples"),
        ({"n_select": 4, "metric": "l3"}, X, "metric is 'l3' but must be one of"),
        ({"n_select": 4, "memory_budget": 5}, X, "memory_budget is 5 bytes but"),
        ({"n_select": 4, "random_state": "seed"}, X, "random_state is 'seed' but must be a whole"),
        ({"n_select": 4, "random_state": -1}, X, "random_state is -1 but must be a whole number"),
        ({"n_select": 4, "metric": "precomputed"}, X @ X[:9].T, r"X has shape \(40, 9\) but .* square"),
        ({"n_select": 4}, X[:, 0], r"X has shape \(40,\) but must be \[n, d\].*; pass X.reshape"),
        ({"n_select": 4}, X[None], r"X has shape \(1, 40, 3\) but must be \[n, d\].*; pass"),
        ({"n_select": 4}, S, "embeddings are a sparse matrix.*; pass"),
    ],
)
def test_wrong_settings_are_refused_by_fit(options, pool, message):
    with pytest.raises(ValueError, match=message) as error:
        CoresetSelector(**options).fit(pool)
    assert str(error.value).endswith(".")


def test_wrong_sample_weights_are_refused_by_fit():
    with pytest.raises(
        ValueError, match=r"sample_weights have shape \(9,\) but must have shape \(40,\)"
    ):
        CoresetSelector(4).fit(X, sample_weight=np.ones(9))


def test_other_rows_and_unfitted_selectors_are_refused():
    with pytest.raises(ValueError, match="X has 9 rows but the choice is among 40; pass"):
        CoresetSelector(4).fit(X).transform(X[:9])
    for ask in (lambda s: s.transform(X), lambda s: s.get_support()):
        with pytest.raises(NotFittedError):
            ask(CoresetSelector(4))
