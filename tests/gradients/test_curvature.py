"""Curvature against the dense Hessian in float64, and smoothing against its recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp
from jax.flatten_util import ravel_pytree

from crest_jax.gradients import (
    draw_probes,
    gradient_and_diagonal,
    hessian_vector_product,
    hutchinson_diagonal,
)
from crest_jax.gradients.curvature import covered, init_moments, smooth


@pytest.fixture(scope="module")
def dense():
    """A cross-entropy loss of a small net, with its dense gradient [d] and Hessian [d, d]."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init_mlp(1, 3, 4, 3))
        inputs = jnp.asarray(rng.normal(size=(8, 3)))
        onehot = jnp.eye(3)[rng.integers(0, 3, 8)]

        def loss(params):
            (w1, b1), (w2, b2) = params
            logits = jnp.tanh(inputs @ w1 + b1[None, :]) @ w2 + b2[None, :]
            return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * onehot, axis=1))

        flat, unravel = ravel_pytree(params)
        hessian = np.asarray(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(flat))
        gradient = np.asarray(jax.jit(jax.grad(lambda v: loss(unravel(v))))(flat))
        assert hessian.dtype == np.float64
        assert np.abs(hessian - np.diag(np.diag(hessian))).max() > 0.01
        yield loss, params, unravel, gradient, hessian


def test_products_match_the_dense_hessian(dense):
    loss, params, unravel, _, hessian = dense
    with jax.enable_x64(True):
        product = jax.jit(lambda v: hessian_vector_product(loss, params, v))
        for vector in np.random.default_rng(2).normal(size=(3, len(hessian))):
            found = ravel_pytree(product(unravel(jnp.asarray(vector))))[0]
            np.testing.assert_allclose(found, hessian @ vector, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_probes", [1, 4])
def test_the_estimated_diagonal_is_unbiased_with_the_stated_variance(dense, num_probes):
    loss, params, _, gradient, hessian = dense
    count = 3000
    with jax.enable_x64(True):

        @jax.jit
        @jax.vmap
        def estimate(key):
            pair = gradient_and_diagonal(draw_probes(key, params, num_probes), loss, params)
            return tuple(ravel_pytree(tree)[0] for tree in pair)

        gradients, diagonals = map(np.asarray, estimate(jax.random.split(jax.random.key(3), count)))
    np.testing.assert_allclose(gradients, np.tile(gradient, (count, 1)), rtol=1e-9, atol=1e-12)
    variance = ((hessian**2).sum(axis=1) - np.diag(hessian) ** 2) / num_probes
    assert (variance > 0).all()
    errors = diagonals.mean(axis=0) - np.diag(hessian)
    assert (np.abs(errors) < 5 * np.sqrt(variance / count)).all()
    np.testing.assert_allclose(diagonals.var(axis=0), variance, rtol=0.25)
    np.testing.assert_allclose(diagonals.var(axis=0).sum(), variance.sum(), rtol=0.05)


@pytest.mark.parametrize("num_probes", [1, 3])
def test_a_diagonal_hessian_is_found_exactly(num_probes):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5, 3.0]])}
    scale = {"a": jnp.array([2.0, -1.0]), "b": jnp.array([[4.0, 0.25]])}

    def loss(p):
        return sum(jnp.sum(scale[name] * p[name] ** 4) for name in p)

    estimate = jax.jit(
        lambda key: gradient_and_diagonal(draw_probes(key, params, num_probes), loss, params)
    )
    hutchinson = jax.jit(lambda key: hutchinson_diagonal(key, loss, params, num_probes=num_probes))
    for seed in range(3):
        gradient, diagonal = estimate(jax.random.key(seed))
        alone = hutchinson(jax.random.key(seed))
        for name in params:
            value, a = np.asarray(params[name], np.float64), np.asarray(scale[name], np.float64)
            np.testing.assert_allclose(gradient[name], 4 * a * value**3, rtol=1e-6)
            np.testing.assert_allclose(diagonal[name], 12 * a * value**2, rtol=1e-6)
            np.testing.assert_allclose(alone[name], 12 * a * value**2, rtol=1e-6)


@pytest.mark.parametrize("num_probes", [0, -1, 1.0])
def test_the_number_of_probes_is_checked(num_probes):
    with pytest.raises(ValueError, match=f"num_probes is {num_probes} but must be.*; pass a positive"):
        hutchinson_diagonal(jax.random.key(0), jnp.sum, jnp.ones(2), num_probes=num_probes)


def numpy_smoothing(pairs, smoothing, beta1, beta2):
    """The pair in use after each update, written as explicit weighted means over the past."""
    for t in range(1, len(pairs) + 1):
        gradients, diagonals = (np.array([pair[i] for pair in pairs[:t]]) for i in (0, 1))
        first, second = (
            (1 - beta) * beta ** np.arange(t)[::-1] / (1 - beta**t) for beta in (beta1, beta2)
        )
        norm = np.sqrt(second @ (diagonals**2).sum(axis=1))
        if smoothing == "none":
            yield gradients[-1], diagonals[-1], np.linalg.norm(diagonals[-1])
        elif smoothing == "signed":
            yield gradients[-1], second @ diagonals, norm
        else:
            yield first @ gradients, np.sqrt(second @ diagonals**2), norm


@pytest.mark.parametrize("smoothing", ["none", "signed", "paper"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.0)])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 3e-4)])
def test_smoothing_matches_the_weighted_mean_over_all_regions(smoothing, betas, x64, tolerance):
    pairs = np.random.default_rng(5).normal(size=(6, 2, 5))
    with jax.enable_x64(x64):

        def tree(values):
            return {"a": jnp.asarray(values[:2]), "b": jnp.asarray(values[2:]).reshape(3, 1)}

        options = {"smoothing": smoothing, "beta1": betas[0], "beta2": betas[1]}
        moments = init_moments(tree(pairs[0, 0]), smoothing=smoothing)
        for pair, expected in zip(pairs, numpy_smoothing(pairs, smoothing, *betas), strict=True):
            moments, *found, norm = smooth(moments, tree(pair[0]), tree(pair[1]), **options)
            assert float(norm) == pytest.approx(expected[-1], rel=1e-5)  # float32
            for one, other in zip(found, expected[:-1], strict=True):
                flat = np.concatenate([np.asarray(one["a"]), np.asarray(one["b"]).ravel()])
                np.testing.assert_allclose(flat, other, rtol=tolerance, atol=tolerance / 10)


def test_the_diagonal_of_a_part_is_that_of_its_block_of_the_dense_hessian(dense):
    loss, params, _, gradient, hessian = dense
    with jax.enable_x64(True):
        part = covered(params, "^1/")  # the second layer
        (w1, b1), (w2, b2) = params
        inside = np.repeat([False, True], [w1.size + b1.size, w2.size + b2.size])
        block = hessian[np.ix_(inside, inside)]
        probes = draw_probes(jax.random.key(0), part, 3)
        found, diagonal = gradient_and_diagonal(probes, loss, params)
        z = np.stack([ravel_pytree(jax.tree.map(lambda x, i=i: x[i], probes))[0] for i in range(3)])
        np.testing.assert_allclose(ravel_pytree(found)[0], gradient, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ravel_pytree(diagonal)[0], (z * (z @ block)).mean(0), rtol=1e-9)
        assert jax.tree.structure(diagonal) == jax.tree.structure(part) != jax.tree.structure(params)


def test_a_part_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"curvature_of is 'tail' .* such as head/w"):
        covered({"body": {"w": 1.0}, "head": {"w": 2.0}}, "tail")
    assert covered({"body": 1.0}, None) == {"body": 1.0}


def test_keys_of_both_forms_draw_the_same_probes_and_a_plain_number_none():
    loss, params = (lambda p: jnp.sum(p**3)), jnp.ones(40)
    new, old = (draw_probes(key, params, 2) for key in (jax.random.key(3), jax.random.PRNGKey(3)))
    np.testing.assert_array_equal(new, old)
    for call in (lambda: draw_probes(3, params, 2), lambda: hutchinson_diagonal(3, loss, params)):
        with pytest.raises(ValueError, match="key is 3 but must be one PRNG key"):
            call()
