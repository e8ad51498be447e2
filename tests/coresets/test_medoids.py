"""Medoids by class blocks against those from all pairs, and both against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import Factored
from crest_jax.coresets.mini_batch import class_side, medoids

SIZE, CLASSES = 24, 4


def brute_force(points, labels, size, masses=None):
    """Picks and weights by greedy facility location in every class, in float64."""
    mass = np.ones(len(labels)) if masses is None else masses
    counts = np.bincount(labels, minlength=CLASSES)
    exact = counts * size / counts.sum()
    quotas = np.floor(exact).astype(int)
    for c in np.argsort(-(exact - quotas), kind="stable")[: size - quotas.sum()]:
        quotas[c] += 1
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    top = max(distances[np.ix_(labels == c, labels == c)].max() for c in range(CLASSES))
    picks, weights = [], []
    for c, quota in enumerate(quotas):
        rows, own = np.flatnonzero(labels == c), []
        cover = np.full(len(rows), top)
        for _ in range(quota):
            gains = np.maximum(cover[None] - distances[np.ix_(rows, rows)], 0) @ mass[rows]
            gains[own] = -1
            own.append(int(gains.argmax()))
            cover = np.minimum(cover, distances[rows[own[-1]], rows])
        nearest = distances[np.ix_(rows, rows[own])].argmin(1)
        picks += rows[own].tolist()
        weights += np.bincount(nearest, mass[rows], quota).tolist()
    return picks, weights


@pytest.mark.parametrize("sizes", [(25, 25, 25, 25), (40, 30, 20, 10), (31, 5, 32, 32)])
@pytest.mark.parametrize("seed", [0, 1])
def test_class_blocks_give_the_picks_of_brute_force(sizes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), sizes))
    points = np.float32(rng.normal(size=(len(labels), 5)))
    found = medoids(points, jnp.asarray(labels), size=SIZE, num_classes=CLASSES, side=48)
    picks, weights = brute_force(points.astype(np.float64), labels, SIZE)
    assert found.indices.tolist() == picks
    assert found.weights.tolist() == weights


@pytest.mark.parametrize("side", [48, None])
def test_classes_stay_apart_with_few_picks_where_that_is_asked(side):
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), [30, 28, 24, 18]))
    points = np.float32(rng.normal(size=(100, 5)))
    given = {"size": 6, "num_classes": CLASSES, "side": side}
    found = medoids(points, jnp.asarray(labels), by_class=True, **given)
    picks, weights = brute_force(points.astype(np.float64), labels, 6)
    assert found.indices.tolist() == picks
    assert found.weights.tolist() == weights
    assert medoids(points, jnp.asarray(labels), **given).indices.tolist() != picks


@pytest.mark.parametrize("side", [48, None])
def test_rows_that_stand_for_several_examples_count_so_often(side):
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), 25))
    points = np.float32(rng.normal(size=(100, 5)))
    masses = rng.choice([1.0, 4.0], 100)
    found = medoids(
        points, jnp.asarray(labels), size=SIZE, num_classes=CLASSES, side=side,
        sample_weights=jnp.asarray(masses, jnp.float32),
    )  # fmt: skip
    picks, weights = brute_force(points.astype(np.float64), labels, SIZE, masses)
    assert found.indices.tolist() == picks
    assert found.weights.tolist() == weights
    assert picks != brute_force(points.astype(np.float64), labels, SIZE)[0]


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ((25, 25, 25, 25), 32),  # every class fits
        ((60, 20, 15, 5), 32),  # the first does not
        ((50, 48, 1, 1), 64),  # two classes get no pick
        ((60, 40, 0, 0), 64),  # two classes are empty
    ],
)
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "exponential"])
def test_class_blocks_and_all_pairs_agree(sizes, side, metric):
    rng = np.random.default_rng(3)
    labels = jnp.asarray(rng.permutation(np.repeat(np.arange(CLASSES), sizes)), jnp.int32)
    left, right = (np.float32(rng.normal(size=(100, d))) for d in (4, 3))
    for embeddings in (left, Factored(left, right)):
        options = {"size": 9, "num_classes": CLASSES, "metric": metric}
        blocks = medoids(embeddings, labels, side=side, **options)
        pairs = medoids(embeddings, labels, **options)
        # Equal gains are common (two rows that cover only each other), so picks may differ there.
        np.testing.assert_allclose(blocks.gains, pairs.gains, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(blocks.objective, pairs.objective, rtol=1e-5)
        assert float(blocks.weights.sum()) == 100


def test_a_class_may_grow_by_half_before_all_pairs_are_compared():
    assert class_side(0.1, 512) >= 1.5 * 51
    assert class_side(0.1, 512) % 16 == 0
    labels = jnp.arange(64) % 4
    program = jax.make_jaxpr(
        lambda x, side: medoids(x, labels, size=16, num_classes=4, side=side), static_argnums=1
    )
    in_blocks, too_large, without = (
        str(program(jnp.ones((64, 3)), side)).count("branches=") for side in (16, 32, None)
    )
    assert in_blocks > without
    assert too_large == without, "blocks as large as all pairs gain nothing"


def test_with_fewer_picks_than_classes_weighted_sums_are_unbiased():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(np.repeat(np.arange(12), rng.integers(1, 9, 12)), jnp.int32)
    centres = rng.normal(size=(12, 5)) * rng.uniform(0.2, 3, (12, 1))
    points = jnp.asarray(
        centres[np.asarray(labels)], jnp.float32
    )  # a class is one point: no medoid errs
    draw = jax.vmap(lambda key: medoids(points, labels, size=4, num_classes=12, key=key))
    found = draw(jax.random.split(jax.random.key(1), 4000))
    own = np.asarray(labels)[np.asarray(found.indices)]
    assert all(len(set(row)) == 4 for row in own.tolist()), "no class twice"
    # Weights are scaled to a sum of n; before that scaling sums over classes are unbiased.
    counts = np.bincount(np.asarray(labels), minlength=12)
    drawn = np.stack([(own == c).any(axis=1) for c in range(12)], axis=1)
    rows = np.asarray(points, np.float64)
    spread = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    masses = np.bincount(np.asarray(labels), spread, minlength=12)
    chances = chances_of(masses, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), chances, atol=4 * 0.5 / np.sqrt(4000))
    expected = (counts / chances)[own]
    expected *= counts.sum() / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-3)


def chances_of(masses, size):
    """Probabilities in proportion to masses, those above one cut to one, summing to ``size``."""
    sure = np.zeros(len(masses), bool)
    while True:
        share = np.where(sure, 1.0, (size - sure.sum()) * masses / masses[~sure].sum())
        if (share[~sure] <= 1).all():
            return share
        sure |= share >= 1


def test_without_a_key_the_largest_classes_are_taken():
    labels = jnp.asarray(np.repeat(np.arange(5), [2, 6, 3, 6, 1]), jnp.int32)
    points = jnp.asarray(np.random.default_rng(2).normal(size=(18, 3)), jnp.float32)
    found = medoids(points, labels, size=3, num_classes=5)
    assert np.asarray(labels)[np.asarray(found.indices)].tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.weights, np.array([6, 3, 6]) * 18 / 15, rtol=1e-6)


@pytest.mark.parametrize("apart", [0, 2], ids=["all rows alike", "two classes differ"])
def test_classes_are_drawn_among_those_with_rows_even_where_no_gradient_is_left(apart):
    labels = jnp.asarray(
        np.repeat([1, 2, 4, 5, 7], [2, 3, 1, 2, 4]), jnp.int32
    )  # 0, 3 and 6 are missing
    points = np.zeros((12, 3), np.float32)
    points[:apart] = np.eye(3)[:apart]
    for seed in range(20):
        found = medoids(jnp.asarray(points), labels, size=3, num_classes=8, key=jax.random.key(seed))
        picks = found.indices.tolist()
        assert len(set(picks)) == 3
        assert len(set(np.asarray(labels)[picks].tolist())) == 3
        np.testing.assert_allclose(float(found.weights.sum()), 12.0, rtol=1e-6)
