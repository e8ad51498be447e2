"""Dissimilarities against float64, and bounds that must never be on the wrong side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax import metrics
from crest_jax.embeddings import Factored

NAMES = [name for name in metrics.METRICS if name != "precomputed"]


def numpy_values(points, name):
    points = np.asarray(points, np.float64)
    if name == "cosine":
        lengths = np.linalg.norm(points, axis=1)
        return 1 - points @ points.T / np.outer(lengths, lengths)
    distances = numpy_distances(points)
    if name == "sqeuclidean":
        return distances**2
    return 1 - np.exp(-distances / points.shape[1]) if name == "exponential" else distances


def computed(points, name):
    """All dissimilarities by rows, by pairs, and their lower bounds."""
    metric = metrics.make_metric(name, points)
    prepared = metrics.make_points(points, name)
    return metric, *all_forms(prepared)


@jax.jit
def all_forms(points):
    n = points.rows
    tiles = metrics.to_tiles(points, n)
    lengths = metrics.squared_lengths(points)
    direct = jax.lax.map(
        lambda i: metrics.squared_to_all(metrics.take_rows(points, i), tiles)[0], jnp.arange(n)
    )
    left, right = (np.repeat(np.arange(n), n), np.tile(np.arange(n), n))
    pairs = metrics.squared_pairs(metrics.take_rows(points, left), metrics.take_rows(points, right))
    columns = metrics.Points(tuple(part[0] for part in tiles.parts))
    lower = metrics.lower_squared(points, lengths, columns, lengths)
    return direct, pairs.reshape(n, n), lower


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from the origin"])
def test_dissimilarities_match_float64_and_bounds_lie_below(name, offset):
    rng = np.random.default_rng(0)
    points = np.float32(rng.normal(size=(30, 70)) + offset)
    points[7] = points[3]
    metric, direct, pairs, lower = computed(jnp.asarray(points), name)
    expected = numpy_values(points, name)
    scale = expected.max()
    for squared in (direct, pairs):
        values = np.asarray(metric.from_squared(squared), np.float64)
        np.testing.assert_allclose(values, expected, rtol=2e-6, atol=2e-6 * scale)
        assert values[3, 7] == 0.0
    bound = np.asarray(metric.lower_from_squared(jnp.maximum(lower, 0.0)), np.float64)
    exact = np.asarray(metric.from_squared(direct), np.float64)
    assert (bound <= exact).all()
    assert (np.asarray(lower) <= np.asarray(direct)).all()
    off = ~np.eye(30, dtype=bool)
    off[3, 7] = off[7, 3] = False
    assert (bound[off] >= (1 - 1e-3) * exact[off]).all(), "the bounds are tight"


def test_factored_distances_are_those_of_the_outer_products():
    rng = np.random.default_rng(1)
    left, right = np.float32(rng.normal(size=(20, 4))), np.float32(rng.normal(size=(20, 6)))
    left[5], right[5] = left[2] * (1 + 1e-4), right[2]  # a near-duplicate, where expansions cancel
    outer = (left.astype(np.float64)[:, :, None] * right[:, None, :]).reshape(20, -1)
    _, direct, pairs, lower = computed(Factored(jnp.asarray(left), jnp.asarray(right)), "euclidean")
    expected = numpy_distances(outer) ** 2
    np.testing.assert_allclose(direct, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(pairs, expected, rtol=1e-5, atol=1e-9)
    assert (np.asarray(lower) <= expected).all()


def test_columns_far_from_the_origin_are_moved_without_loss():
    points = np.float32([[1e6, -3.0, 5.0], [1e6 + 0.0625, -3.5, -5.0], [1e6 + 7, -5.9, 1e-3]])
    moved = np.asarray(metrics.make_points(jnp.asarray(points), "euclidean").parts[0], np.float64)
    np.testing.assert_array_equal(moved - moved[0], points.astype(np.float64) - points[0])
    assert np.abs(moved[:, 0]).max() < 10
    assert (moved[:, 2] == points[:, 2]).all(), "a column around 0 stays"


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(NAMES),
    squared=st.floats(0, 1e6, width=32),
    nearer=st.floats(0, 1, width=32),
)
def test_no_closer_row_escapes_the_reach_of_a_cover(name, squared, nearer):
    metric = metrics.Metric(name, 5.0)
    # What is stored as a cover comes from some squared distance; whatever is nearer must be within.
    cover = metric.from_squared(jnp.float32(squared))
    inside = jnp.float32(squared * nearer)
    closer = float(metric.from_squared(inside)) < float(cover)
    assert not closer or float(inside) < float(metric.to_squared(cover))
    assert float(metric.lower_from_squared(inside)) <= float(metric.from_squared(inside))


def test_cosines_of_zero_rows_are_finite():
    points = jnp.zeros((3, 4)).at[0, 0].set(1.0)
    metric, direct, _, _ = computed(points, "cosine")
    assert jnp.isfinite(metric.from_squared(direct)).all()
