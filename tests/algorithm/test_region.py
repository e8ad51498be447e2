"""The quadratic model against a quadratic, and the check interval against a table by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.algorithm import Region, predict, relative_error
from crest_jax.algorithm.regions import check_interval
from crest_jax.gradients.curvature import covered


def random_region(rng, dtype):
    def tree(flat):
        return {"a": jnp.asarray(flat[:3], dtype), "b": [jnp.asarray(flat[3:], dtype).reshape(2, 2)]}

    anchor, gradient, curvature = rng.normal(size=(3, 7))
    loss = 2.0 + rng.random()
    region = Region(
        anchor=tree(anchor),
        model_state={},
        probe_indices=jnp.arange(4),
        probe_weights=jnp.ones(4),
        loss=jnp.asarray(loss, dtype),
        gradient=tree(gradient),
        curvature=tree(curvature),
    )
    return region, tree, (anchor, gradient, curvature, loss)


def test_the_model_is_exact_on_a_quadratic_with_a_diagonal_hessian():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(5):
            region, tree, (anchor, gradient, curvature, loss) = random_region(rng, jnp.float64)
            # The same quadratic in powers of the parameters: 1/2 h w^2 + slope w + constant.
            slope = gradient - curvature * anchor
            constant = loss - (curvature / 2 * anchor**2 + slope * anchor).sum()
            for scale in (1e-6, 1.0, 30.0):
                point = anchor + scale * rng.normal(size=7)
                truth = (curvature / 2 * point**2 + slope * point).sum() + constant
                np.testing.assert_allclose(predict(region, tree(point)), truth, rtol=1e-10)
                measured = 0.5 + 3 * rng.random()
                error = relative_error(predict(region, tree(point)), jnp.asarray(measured))
                np.testing.assert_allclose(error, abs(truth - measured) / measured, rtol=1e-8)


def test_the_error_is_exactly_zero_at_the_anchor():
    rng = np.random.default_rng(1)
    error = jax.jit(lambda region, params, loss: relative_error(predict(region, params), loss))
    for _ in range(10):
        region, tree, (anchor, *_) = random_region(rng, jnp.float32)
        assert float(error(region, tree(anchor), region.loss)) == 0.0
        assert float(error(region, tree(anchor + 0.5), region.loss)) > 0.0
        assert float(error(region, tree(anchor), region.loss * 2)) == 0.5


def test_along_the_way_gone_the_model_takes_what_it_is_told():
    region, tree, (anchor, gradient, _, loss) = random_region(np.random.default_rng(2), jnp.float32)
    delta = np.arange(7) / 7
    found = predict(region._replace(curvature=None), tree(anchor + delta), jnp.float32(0.5))
    assert float(found) == pytest.approx(loss + gradient @ delta + 0.25, rel=1e-5)


@pytest.mark.parametrize(
    ("reference", "norm", "multiplier", "maximum", "expected"),
    [
        (8.0, 8.0, 4.0, 100, 4),
        (8.0, 4.0, 4.0, 100, 8),
        (8.0, 5.0, 4.0, 100, 7),  # 6.4, rounded up
        (8.0, 16.0, 4.0, 100, 2),
        (8.0, 32.0, 4.0, 100, 1),
        (8.0, 1e9, 4.0, 100, 1),  # never below one step
        (0.0, 3.0, 4.0, 100, 1),
        (8.0, 0.1, 4.0, 100, 100),  # 320, capped
        (8.0, 0.32, 4.0, 100, 100),
        (8.0, 0.0, 4.0, 100, 100),  # no curvature: the longest interval
        (0.0, 0.0, 4.0, 16, 16),
        (math.nan, 5.0, 4.0, 100, 4),  # no reference yet: the ratio counts as 1
        (math.nan, 0.0, 4.0, 100, 4),
        (math.nan, 5.0, 2.5, 100, 3),
        (math.nan, 5.0, 50.0, 16, 16),
        (8.0, 8.0, 0.01, 16, 1),
    ],
)
def test_check_intervals_by_hand(reference, norm, multiplier, maximum, expected):
    interval = check_interval(reference, norm, multiplier=multiplier, maximum=maximum)
    assert interval == expected
    assert isinstance(interval, int)


def test_intervals_grow_as_curvature_falls():
    intervals = [
        check_interval(3.0, norm, multiplier=4.0, maximum=20) for norm in np.geomspace(100, 0.01, 60)
    ]
    assert intervals == sorted(intervals)
    assert set(intervals) >= {1, 2, 3, 4, 20}


def test_curvature_of_a_part_counts_as_zero_elsewhere():
    region, tree, _ = random_region(np.random.default_rng(3), jnp.float32)
    part = region._replace(curvature=covered(region.curvature, "a"))
    zero = {"a": region.curvature["a"], "b": [jnp.zeros((2, 2))]}
    params = tree(np.random.default_rng(4).normal(size=7))
    expected = predict(region._replace(curvature=zero), params)
    np.testing.assert_allclose(predict(part, params), expected, rtol=1e-6)
    assert abs(expected - predict(region, params)) > 1e-3


def test_the_error_of_a_negative_loss_is_positive():
    assert float(relative_error(jnp.float32(100.0), jnp.float32(-1.0))) == 101.0
    assert float(relative_error(jnp.float32(-1.0), jnp.float32(-1.0))) == 0.0
