"""Exact means exact: every pick's gain against the best one, recomputed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_coverage, numpy_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax import Factored, select_coreset
from crest_jax.coresets import lazy, metrics, oracles, sums
from experiments.benchmarks.peers import dissimilarity, gaps

N, SIZE, CLASSES = 140, 25, 3  # two blocks of candidates


def class_gaps(values, labels, picks):
    """Largest gap over all classes; picks come class by class."""
    worst = 0.0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place = {row: k for k, row in enumerate(rows)}
        own = np.array([place[p] for p in picks if labels[p] == label], int)
        inside = values[np.ix_(rows, rows)]
        worst = max(worst, gaps(inside, own, inside.max()).max(initial=0.0))
    return worst


def test_the_reference_finds_gaps():
    rng = np.random.default_rng(0)
    values = numpy_distances(rng.normal(size=(30, 2)))
    picks = rng.permutation(30)[:8]
    top = values.max()
    cover, free, expected = np.full(30, top), np.ones(30, bool), []
    for pick in picks:
        gains = np.maximum(cover[:, None] - values, 0).sum(axis=0)
        expected.append((gains[free].max() - gains[pick]) / gains[free].max())
        cover, free[pick] = np.minimum(cover, values[pick]), False
    np.testing.assert_allclose(gaps(values, picks, top), expected, atol=1e-12)
    assert max(expected) > 0.1


def run_lazy(points, size, capacity, name="euclidean"):
    """The lazy kernel alone; returns the run."""

    def go(points):
        n = points.shape[0]
        wide = oracles.padded(n)
        prepared, metric, unit = metrics.prepare(jnp.pad(points, ((0, wide - n), (0, 0))), name)
        (prepared,) = sums.centred(metric, prepared)
        valid = jnp.arange(wide) < n
        oracle = oracles.PointOracle(metric, prepared, prepared, valid, None)
        run = lazy.lazy_greedy(oracle, valid, jnp.int32(size), size, capacity)
        return run._replace(cover=run.cover * unit)

    return jax.jit(go)(jnp.asarray(points))


@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 64])
@pytest.mark.parametrize("kernel", ["euclidean", "exponential"])
def test_gaps_at_two_thousand(width, kernel):
    x = np.random.default_rng(0).normal(size=(2_000, width)).astype(np.float32)
    found = select_coreset(x, 200, metric=kernel, method="lazy")
    values = dissimilarity(x, kernel)
    top = 1.0 if kernel == "exponential" else values.max()
    picks = np.asarray(found.indices)
    assert gaps(values, picks, top).max() <= 1e-6
    cover = values[picks].min(axis=0)
    np.testing.assert_allclose(float(found.objective), (top - cover).sum(), rtol=1e-6)
    assert found.weights.tolist() == np.bincount(values[picks].argmin(axis=0), minlength=200).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 64])
@pytest.mark.parametrize("kernel", ["euclidean", "exponential"])
def test_gaps_at_twenty_thousand(width, kernel):
    x = np.random.default_rng(1).normal(size=(20_000, width)).astype(np.float32)
    picks = np.asarray(select_coreset(x, 2_000, metric=kernel).indices)
    values = dissimilarity(x, kernel)
    assert gaps(values, picks, 1.0 if kernel == "exponential" else values.max()).max() <= 1e-6


@pytest.mark.slow
def test_clusters_far_from_the_origin_stay_exact():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(40, 6)) * 30
    x = np.float32(1000 + centres[rng.integers(0, 40, 600)] + rng.normal(size=(600, 6)) * 0.01)
    picks = np.asarray(select_coreset(x, 90, method="lazy").indices)
    values = dissimilarity(x, "euclidean")
    assert gaps(values, picks, values.max()).max() <= 1e-6


@pytest.mark.parametrize("capacity", [0, 9_000, 10**6], ids=["never", "late", "early"])
def test_lists_change_no_pick(capacity):
    x = np.random.default_rng(3).normal(size=(700, 4)).astype(np.float32)
    values = dissimilarity(x, "euclidean")
    run = run_lazy(x, 120, capacity)
    assert (int(run.entries) > 0) == (capacity > 0)
    assert gaps(values, np.asarray(run.picks), values.max()).max() <= 1e-6
    np.testing.assert_allclose(run.cover[:700], values[np.asarray(run.picks)].min(axis=0), rtol=1e-6)


@pytest.mark.slow
def test_lists_that_do_not_fit_after_all_are_put_off():
    rng = np.random.default_rng(4)
    n = oracles.padded(1_000)
    x = np.float32(rng.normal(size=(n, 3)))
    # The rows that are sampled for the estimate are hermits: they can improve nobody.
    hermits = np.linspace(0, n, lazy.SAMPLE, endpoint=False).astype(int)
    x[hermits] = 1e3 * np.eye(3)[rng.integers(0, 3, len(hermits))] * np.arange(1, 129)[:, None]
    values = dissimilarity(x, "euclidean")
    run = run_lazy(x, 150, capacity=20_000)
    early = run_lazy(x, 150, capacity=10**6)
    passes = int(run.evaluations) - int(early.evaluations)
    assert passes > n, "a pass was spent on lists that did not fit"
    assert gaps(values, np.asarray(run.picks), values.max()).max() <= 1e-6


def problems(coordinate):
    return st.tuples(
        st.integers(0, 2**32 - 1),
        st.integers(1, N),  # how many rows differ from each other
        coordinate,
    )


@pytest.mark.parametrize("method", ["dense", "lazy"])
@settings(deadline=None, max_examples=120)
@given(problem=problems(st.sampled_from([1e-3, 1.0, 1e4])))
def test_hundreds_of_random_problems_with_duplicates(method, problem):
    seed, different, scale = problem
    rng = np.random.default_rng(seed)
    x = np.float32(rng.normal(size=(different, 3)) * scale)[rng.integers(0, different, N)]
    labels = rng.permutation(np.arange(N) % CLASSES)
    found = select_coreset(x, SIZE, labels=labels, num_classes=CLASSES, method=method)
    picks = found.indices.tolist()
    assert len(set(picks)) == SIZE
    assert float(found.weights.sum()) == N
    assert float(found.weights.min()) >= 1
    assert class_gaps(dissimilarity(x, "euclidean"), labels, picks) <= 1e-6


@pytest.mark.parametrize("method", ["dense", "lazy"])
@settings(deadline=None, max_examples=120)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 4))
def test_ties_go_to_the_lowest_row(method, seed, side):
    # Squared distances on a grid are whole numbers: float32 is exact and ties are true ties.
    rng = np.random.default_rng(seed)
    x = np.float32(rng.integers(0, side, (N, 3)))
    labels = np.zeros(N, int)
    found = select_coreset(x, SIZE, metric="sqeuclidean", method=method)
    values = dissimilarity(x, "euclidean") ** 2
    values = np.round(values)
    cover, free, expected = np.full(N, values.max()), np.ones(N, bool), []
    for _ in range(SIZE):
        gains = np.where(free, np.maximum(cover[:, None] - values, 0).sum(axis=0), -1)
        expected.append(int(gains.argmax()))
        cover, free[expected[-1]] = np.minimum(cover, values[expected[-1]]), False
    assert found.indices.tolist() == expected
    assert found.weights.tolist() == numpy_coverage(-values, labels, expected).tolist()
    assert float(found.objective) == (values.max() - cover).sum()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "exponential"])
@pytest.mark.parametrize("method", ["dense", "lazy"])
def test_other_metrics_are_exact_too(metric, method):
    rng = np.random.default_rng(5)
    x = np.float32(rng.normal(size=(N, 5)) + 1)
    labels = np.arange(N) % CLASSES
    picks = select_coreset(x, SIZE, labels=labels, metric=metric, method=method).indices.tolist()
    y = x.astype(np.float64)
    if metric == "cosine":
        y /= np.linalg.norm(y, axis=1, keepdims=True)
    values = dissimilarity(x, metric) if metric == "exponential" else numpy_distances(y) ** 2
    assert class_gaps(values, labels, picks) <= 1e-6


@pytest.mark.slow
def test_factored_embeddings_are_exact_in_the_lazy_form():
    rng = np.random.default_rng(6)
    left, right = np.float32(rng.normal(size=(N, 3))), np.float32(rng.normal(size=(N, 8)))
    outer = (left.astype(np.float64)[:, :, None] * right[:, None, :]).reshape(N, -1)
    picks = select_coreset(Factored(left, right), SIZE, method="lazy").indices
    values = numpy_distances(outer)
    assert gaps(values, np.asarray(picks), values.max()).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lazy", "stochastic"])
def test_jit_vmap_and_checked_calls_agree(method):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(size=(2, N, 3)), jnp.float32)
    labels = jnp.asarray(np.stack([rng.permutation(np.arange(N) % CLASSES) for _ in range(2)]))

    def select(x, labels):
        return select_coreset(x, SIZE, labels=labels, num_classes=CLASSES, method=method)

    together = jax.jit(jax.vmap(select))(x, labels)
    for k in range(2):
        compiled, checked = jax.jit(select)(x[k], labels[k]), select(x[k], labels[k])
        assert together.indices[k].tolist() == compiled.indices.tolist()
        assert together.weights[k].tolist() == compiled.weights.tolist()
        if method == "lazy":  # draws depend on the class sizes known outside
            assert checked.indices.tolist() == compiled.indices.tolist()
            assert checked.weights.tolist() == compiled.weights.tolist()
            np.testing.assert_allclose(checked.gains, compiled.gains, rtol=1e-5)


@pytest.mark.slow
def test_stochastic_greedy_keeps_its_bound():
    rng = np.random.default_rng(8)
    x = np.float32(rng.normal(size=(400, 3)))
    best = float(select_coreset(x, 20, method="lazy").objective)
    for epsilon in (0.5, 0.05):
        values = [
            float(
                select_coreset(
                    x, 20, method="stochastic", epsilon=epsilon, key=jax.random.key(seed)
                ).objective
            )
            for seed in range(12)
        ]
        # Greedy itself is at least 1 - 1/e of the best and in practice nearly equal to it.
        assert np.mean(values) >= (1 - 1 / np.e - epsilon) * best
        assert np.mean(values) >= (1 - epsilon / 5) * best
        assert len(set(values)) > 1
