"""Weighted samples: chances, unbiased sums, no row twice, and no loop in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import Factored
from crest_jax.coresets.importance import LEVEL, importance_sample, inclusion_chances, lengths_of

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
def test_weighted_sums_are_right_in_expectation_and_no_row_comes_twice(weighted):
    rows, labels = problem()
    each = RNG.choice([1.0, 4.0], len(rows)).astype(np.float32) if weighted else np.ones(len(rows))
    picks, weights = draws(rows, labels, 12, jnp.asarray(each, jnp.float32) if weighted else None)
    assert all(len(set(drawn)) == 12 for drawn in picks.tolist())
    values = np.asarray(rows, np.float64)
    sums = np.einsum("ki,kid->kd", weights.astype(np.float64), values[picks])
    error = sums.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(sums.mean(axis=0) - each @ values) < 4.5 * error).all()
    lengths = np.linalg.norm(values, axis=1)
    masses = each * (lengths / (each @ lengths / each.sum()) + LEVEL)
    chances = chances_in_float64(masses, 12)
    seen = np.bincount(picks.ravel(), minlength=len(rows)) / DRAWS
    assert (np.abs(seen - chances) < 4.5 * np.sqrt(chances / DRAWS) + 1e-3).all()
    np.testing.assert_allclose(weights, (each / chances)[picks], rtol=1e-3)


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
