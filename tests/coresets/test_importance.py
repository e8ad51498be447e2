"""Weighted samples: chances, unbiased sums, no row twice, and no loop in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import Factored
from crest_jax.coresets.importance import (
    LEVEL,
    calibrated,
    importance_sample,
    inclusion_chances,
    lengths_of,
    projections,
)

RNG = np.random.default_rng(0)
DRAWS = 4000


def chances_in_float64(masses, size):
    """Chances by hand: give the largest their limit until all others are below it."""
    masses, count = np.asarray(masses, np.float64), len(masses)
    most = max(0.99, (size / count + 1) / 2)
    chances = np.zeros(count)
    full = np.zeros(count, bool)
    while True:
        chances[full] = most
        chances[~full] = (size - most * full.sum()) * masses[~full] / masses[~full].sum()
        if (chances[~full] <= most + 1e-12).all():
            return chances
        full |= chances > most


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("count", "size"), [(5, 1), (40, 12), (512, 128), (130, 128)])
def test_chances_are_in_proportion_to_masses_up_to_a_limit(spread, count, size):
    masses = np.exp(spread * RNG.normal(size=count)).astype(np.float32)
    found = np.asarray(inclusion_chances(jnp.asarray(masses), size))
    np.testing.assert_allclose(found, chances_in_float64(masses, size), rtol=2e-4)
    np.testing.assert_allclose(found.sum(), size, rtol=1e-5)


def problem(count=48, width=6):
    rows = (RNG.normal(size=(count, width)) * np.exp(RNG.normal(size=(count, 1)))).astype(np.float32)
    return jnp.asarray(rows), jnp.asarray(np.sort(np.arange(count) % 3))


def draws(rows, labels, size, sample_weights=None):
    keys = jax.random.split(jax.random.key(1), DRAWS)
    one = lambda key: importance_sample(  # noqa: E731
        key, rows, labels, size=size, sample_weights=sample_weights
    )
    return [np.asarray(x) for x in jax.jit(jax.vmap(one))(keys)]


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_drawn_by_their_chances_and_none_comes_twice(weighted):
    rows, labels = problem()
    each = RNG.choice([1.0, 4.0], len(rows)).astype(np.float32) if weighted else np.ones(len(rows))
    picks, _ = draws(rows, labels, 12, jnp.asarray(each, jnp.float32) if weighted else None)
    assert all(len(set(drawn)) == 12 for drawn in picks.tolist())
    lengths = np.linalg.norm(np.asarray(rows, np.float64), axis=1)
    masses = each * (lengths / (each @ lengths / each.sum()) + LEVEL)
    chances = chances_in_float64(masses, 12)
    seen = np.bincount(picks.ravel(), minlength=len(rows)) / DRAWS
    assert (np.abs(seen - chances) < 4.5 * np.sqrt(chances / DRAWS) + 1e-3).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_have_hardly_a_bias_and_less_error_than_those_of_as_many_random_rows(weighted):
    rows, labels = problem(256, 40)
    each = RNG.choice([1.0, 4.0], 256).astype(np.float32) if weighted else np.ones(256, np.float32)
    picks, weights = draws(rows, labels, 64, jnp.asarray(each))
    values = np.asarray(rows, np.float64)
    whole = each @ values
    sums = np.einsum("ki,kid->kd", weights.astype(np.float64), values[picks])
    error = np.mean(np.sum((sums - whole) ** 2, axis=1))
    bias = np.sum((sums.mean(axis=0) - whole) ** 2) - error / DRAWS
    assert bias < 0.05 * error
    keys = jax.random.split(jax.random.key(2), 500)
    random = np.stack([np.asarray(jax.random.permutation(key, 256)[:64]) for key in keys])
    plain = np.einsum("ki,kid->kd", 4.0 * each[random], values[random])
    assert error < 0.3 * np.mean(np.sum((plain - whole) ** 2, axis=1))
    np.testing.assert_allclose(weights.sum(axis=1).mean(), each.sum(), rtol=1e-2)


def test_calibrated_weights_give_the_sums_that_least_squares_asks_for():
    values = RNG.normal(size=(60, 3)).astype(np.float32)
    picks, each = RNG.permutation(60)[:20], RNG.uniform(0.5, 2, 60).astype(np.float32)
    weights = RNG.uniform(2.5, 3.5, 20).astype(np.float32)
    given = (jnp.asarray(x) for x in (weights, picks, values, each))
    found = np.asarray(calibrated(*given), np.float64)
    own = values[picks].astype(np.float64)
    square = own.T @ (weights[:, None] * own)
    square += np.diag(0.01 * np.diag(square))
    change = own @ np.linalg.solve(square, each @ values - weights @ own)
    np.testing.assert_allclose(found, weights * np.maximum(1 + change, 0.1), rtol=1e-4)
    before = np.linalg.norm(weights @ own - each @ values)
    assert np.linalg.norm(found @ own - each @ values) < 0.1 * before


def test_a_column_that_the_picks_hardly_have_changes_no_weight():
    rare = jnp.zeros((512, 4)).at[:, 0].set(1.0).at[7, 1].set(1.0)  # three rows in four miss row 7
    for seed in range(8):
        _, weights = importance_sample(jax.random.key(seed), rare, jnp.zeros(512, int), size=128)
        assert np.isfinite(weights).all()
        assert float(weights.min()) > 0
        np.testing.assert_allclose(weights.sum(), 512, rtol=0.02)


def test_projections_are_those_of_outer_products():
    left, right = (jnp.asarray(RNG.normal(size=(9, d)), jnp.float32) for d in (4, 5))
    found = projections(Factored(left, right), 7)
    rng = np.random.default_rng(0)
    a, b = (2.0 * rng.integers(0, 2, (d, 7)) - 1 for d in (4, 5))
    wanted = np.einsum("ni,nj,ik,jk->nk", left, right, a, b)
    np.testing.assert_allclose(found, wanted / np.sqrt(np.mean(wanted**2, axis=0)), rtol=1e-4)
    few = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)
    assert projections(few, 7).shape == (9, 3)


def test_every_class_has_the_share_of_the_picks_that_belongs_to_it():
    rows, labels = problem()
    masses = lengths_of(rows) / jnp.mean(lengths_of(rows)) + LEVEL
    wanted = np.bincount(labels, weights=chances_in_float64(masses, 12))
    picks, _ = draws(rows, labels, 12)
    counts = np.stack([np.bincount(drawn, minlength=3) for drawn in np.asarray(labels)[picks]])
    assert (np.abs(counts - wanted) < 1).all()


def test_lengths_are_those_of_outer_products():
    left, right = (jnp.asarray(RNG.normal(size=(7, d)), jnp.float32) for d in (3, 5))
    products = jnp.einsum("ni,nj->nij", left, right).reshape(7, -1)
    np.testing.assert_allclose(lengths_of(Factored(left, right)), lengths_of(products), rtol=1e-5)


def test_a_sample_of_all_rows_is_all_rows():
    rows, labels = problem(8)
    picks, weights = importance_sample(jax.random.key(0), rows, labels, size=8)
    assert picks.tolist() == list(range(8))
    assert weights.tolist() == [1.0] * 8


def test_rows_without_a_gradient_are_drawn_alike():
    picks, weights = draws(jnp.zeros((10, 3)), jnp.zeros(10, int), 4)
    np.testing.assert_allclose(weights, 2.5, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(picks.ravel()) / DRAWS, 0.4, atol=0.05)


def test_the_program_has_no_loop_of_unknown_length():
    rows, labels = problem()
    program = importance_sample.lower(jax.random.key(0), rows, labels, size=12).compile().as_text()
    loops = [line for line in program.splitlines() if " while(" in line]
    assert all("known_trip_count" in line for line in loops)
