"""Dissimilarities against float64, and bounds that must never be on the wrong side."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax import Factored, select_coreset, select_coreset_sharded
from crest_jax.coresets import metrics, sums
from crest_jax.coresets.inputs import make_pool

NAMES = [name for name in metrics.METRICS if name != "precomputed"]


def numpy_values(points, name):
    points = np.asarray(points, np.float64)
    if name == "cosine":
        lengths = np.linalg.norm(points, axis=1)
        return 1 - points @ points.T / np.outer(lengths, lengths)
    if name == "correlation":
        return 1 - np.corrcoef(points)
    if name == "dot":
        return -points @ points.T
    if name == "manhattan":
        return np.abs(points[:, None] - points[None]).sum(axis=-1)
    distances = numpy_distances(points)
    if name == "sqeuclidean":
        return distances**2
    if name == "rbf":
        return 1 - np.exp(-(distances**2) / points.shape[1])
    return 1 - np.exp(-distances / points.shape[1]) if name == "exponential" else distances


def computed(points, name):
    """All squared distances by rows, by pairs, and bounds of them, with their metric and unit."""
    prepared, metric, unit = metrics.prepare(points, name)
    (prepared,) = sums.centred(metric, prepared)
    return metric, *all_forms(prepared, metric, metric.scale), float(unit)


def all_forms(points, metric, scale):
    return compiled_forms(points, metric._replace(scale=0.0), scale)


@partial(jax.jit, static_argnames="metric")
def compiled_forms(points, metric, scale):
    metric = metric._replace(scale=scale)
    n = points.rows
    tiles = sums.to_tiles(points, n)
    lengths = sums.lengths(metric, points)
    direct = jax.lax.map(
        lambda i: sums.to_all(metric, metrics.take_rows(points, i), tiles)[0], jnp.arange(n)
    )
    left, right = (np.repeat(np.arange(n), n), np.tile(np.arange(n), n))
    pairs = sums.pairs(metric, metrics.take_rows(points, left), metrics.take_rows(points, right))
    lower = sums.lower(metric, points, lengths, metrics.take_rows(tiles, 0), lengths)
    upper = lower + sums.spread(points, lengths[:, None] + lengths[None, :])
    return direct, pairs.reshape(n, n), lower, upper


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from the origin"])
def test_dissimilarities_match_float64_and_bounds_lie_below(name, offset):
    rng = np.random.default_rng(0)
    points = np.float32(rng.normal(size=(30, 70)) + offset)
    points[7] = points[3]
    metric, direct, pairs, lower, upper, unit = computed(jnp.asarray(points), name)
    expected = numpy_values(points, name)
    scale = np.abs(expected).max()
    for squared in (direct, pairs):
        values = np.asarray(metric.from_sums(squared), np.float64) * unit
        # Rows far from the origin have close directions: the mean is taken off in float32 here.
        near = 2e-5 if name == "correlation" and offset else 2e-6
        np.testing.assert_allclose(values, expected, rtol=near, atol=near * scale)
        assert values[3, 7] == 0.0 or name == "dot"
    bound = np.asarray(metric.lower_from_sums(lower), np.float64)
    exact = np.asarray(metric.from_sums(direct), np.float64)
    assert (bound <= exact).all()
    assert (np.asarray(lower) <= np.asarray(direct)).all()
    assert name == "dot" or (np.asarray(upper) >= np.asarray(direct)).all()
    off = ~np.eye(30, dtype=bool)
    off[3, 7] = off[7, 3] = False
    size = np.abs(exact).max() if name == "dot" else np.abs(exact[off])
    assert (bound[off] >= exact[off] - 1e-3 * size).all(), "the bounds are tight"


def test_factored_distances_are_those_of_the_outer_products():
    rng = np.random.default_rng(1)
    left, right = np.float32(rng.normal(size=(20, 4))), np.float32(rng.normal(size=(20, 6)))
    left[5], right[5] = left[2] * (1 + 1e-4), right[2]  # a near-duplicate, where expansions cancel
    outer = (left.astype(np.float64)[:, :, None] * right[:, None, :]).reshape(20, -1)
    factored = Factored(jnp.asarray(left), jnp.asarray(right))
    _, direct, pairs, lower, _, unit = computed(factored, "euclidean")
    expected = numpy_distances(outer) ** 2
    np.testing.assert_allclose(direct * unit**2, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(pairs * unit**2, expected, rtol=1e-5, atol=1e-9)
    assert (np.asarray(lower, np.float64) * unit**2 <= expected).all()


def test_columns_far_from_the_origin_are_moved_without_loss():
    points = np.float32([[1e6, -3.0, 5.0], [1e6 + 0.0625, -3.5, -5.0], [1e6 + 7, -5.9, 1e-3]])
    metric = metrics.Metric("euclidean", 1.0)
    (found,) = sums.centred(metric, metrics.Points((jnp.asarray(points),)))
    moved = np.asarray(found.parts[0], np.float64)
    np.testing.assert_array_equal(moved - moved[0], points.astype(np.float64) - points[0])
    assert np.abs(moved[:, 0]).max() < 10
    assert (moved[:, 2] == points[:, 2]).all(), "a column around 0 stays"


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(NAMES),
    squared=st.just(0.0) | st.floats(2.0**-100, 1e6, width=32),  # not below: it may become 0
    nearer=st.floats(0, 1, width=32),
)
def test_no_closer_row_escapes_the_reach_of_a_cover(name, squared, nearer):
    metric = metrics.Metric(name, 5.0)
    # What is stored as a cover comes from some squared distance; whatever is nearer must be within.
    cover = metric.from_sums(jnp.float32(squared))
    inside = jnp.float32(squared * nearer)
    closer = float(metric.from_sums(inside)) < float(cover)
    assert not closer or float(inside) < float(metric.to_sums(cover))
    assert float(metric.lower_from_sums(inside)) <= float(metric.from_sums(inside))


def test_rows_of_zeros_have_cosine_0_with_all_others():
    points = jnp.zeros((4, 3)).at[0, 0].set(1e-25).at[3, 1].set(3.0)
    metric, direct, pairs, lower, _, _ = computed(points, "cosine")
    expected = 1.0 - np.eye(4)
    np.testing.assert_allclose(metric.from_sums(direct), expected, atol=1e-6)
    np.testing.assert_allclose(metric.from_sums(pairs), expected, atol=1e-6)
    assert (np.asarray(lower) <= 2 * expected).all()


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
@pytest.mark.parametrize("name", ["euclidean", "cosine", "manhattan", "correlation"])
def test_scales_neither_vanish_nor_overflow(name, scale):
    points = np.float32(np.random.default_rng(3).normal(size=(12, 5)))
    metric, direct, _, lower, _, unit = computed(jnp.asarray(points * np.float32(scale)), name)
    values = np.asarray(metric.from_sums(direct), np.float64) * unit
    expected = numpy_values(points, name) * (scale if name in ("euclidean", "manhattan") else 1.0)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * expected.max())
    assert (np.asarray(lower) <= np.asarray(direct)).all()


@pytest.mark.parametrize("form", ["dense", "lazy", "sharded", "initial"])
@pytest.mark.parametrize(("metric", "scale"), [("rbf", 2.0**-34), ("exponential", 2.0**-75)])
def test_gains_are_right_where_all_similarities_are_1(metric, scale, form):
    points = np.random.default_rng(0).normal(size=(24, 2))
    near = np.float32(scale * points)
    asked = {"metric": metric, "initial": [3]} if form == "initial" else {"metric": metric}
    if form == "sharded":
        found = select_coreset_sharded(near, 6, mesh=jax.make_mesh((1,), ("data",)), **asked)
    else:
        found = select_coreset(near, 6, method="lazy" if form == "initial" else form, **asked)
    picks = np.asarray(found.indices)
    distances = np.linalg.norm(near[:, None].astype(float) - near[None], axis=-1) / 2
    values = 2 * np.square(distances) if metric == "rbf" else distances  # gamma is 1 / 2
    cover = np.minimum.accumulate(values[:, picks], axis=1).sum(axis=0)
    np.testing.assert_allclose(found.gains[1:], -np.diff(cover), rtol=1e-5)


@pytest.mark.parametrize("metric", ["rbf", "exponential"])
def test_usual_gains_are_left_as_they_are(metric):
    pools = (make_pool(np.eye(2, d, dtype=np.float32), metric, batched=False) for d in range(1, 99))
    assert {pool.share for pool in pools} == {1.0}  # to the last digit
