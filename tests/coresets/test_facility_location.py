"""Greedy facility location against brute force and a plain NumPy greedy in float64."""

from fractions import Fraction
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import facility_location, numpy_coverage, numpy_distances, numpy_greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax.coresets.coverage import coverage_counts
from crest_jax.coresets.greedy import first_largest, greedy
from crest_jax.data.quotas import largest_remainder

N, M, CLASSES = 14, 6, 3


@partial(jax.jit, static_argnames="size")
def run_greedy(similarities, classes, quotas, size):
    return greedy(-similarities, jnp.float32(0), classes, quotas, size)


@jax.jit
def run_coverage(similarities, classes, picks):
    return coverage_counts(-similarities, classes, picks).weights


run_largest_remainder = jax.jit(largest_remainder)


def quotas_by_fractions(counts, size):
    """Largest remainder in exact arithmetic."""
    total = sum(counts)
    shares = [Fraction(size * count, total) for count in counts]
    quotas = [share.numerator // share.denominator for share in shares]
    order = sorted(range(len(counts)), key=lambda c: (quotas[c] - shares[c], c))
    for c in order[: size - sum(quotas)]:
        quotas[c] += 1
    return quotas


@settings(deadline=None, max_examples=100)
@given(counts=st.lists(st.integers(0, 40), min_size=6, max_size=6).filter(any), data=st.data())
def test_quotas_match_exact_fractions(counts, data):
    size = data.draw(st.one_of(st.just(sum(counts)), st.integers(0, sum(counts))))
    quotas = run_largest_remainder(jnp.array(counts), size).tolist()
    assert quotas == quotas_by_fractions(counts, size)
    assert sum(quotas) == size
    assert all(quota <= count for quota, count in zip(quotas, counts, strict=True))


@pytest.mark.parametrize("size", [1, 128, 23_171, 46_339, 46_340])
def test_quotas_are_exact_up_to_the_largest_pool(size):
    counts = [46_340 - 20_011 - 3 - 1, 20_011, 0, 3, 1, 0]  # 46,340^2 is the last square below 2^31
    assert run_largest_remainder(jnp.array(counts), size).tolist() == quotas_by_fractions(counts, size)


def test_quotas_of_everything_are_the_counts_at_any_size():
    counts = [2**30, 2**30 - 9, 0, 3, 1, 4]
    assert run_largest_remainder(jnp.array(counts), sum(counts)).tolist() == counts


def problem_strategy(coordinate):
    return st.tuples(
        st.lists(st.lists(coordinate, min_size=2, max_size=2), min_size=N, max_size=N),
        st.lists(st.integers(0, CLASSES - 1), min_size=N, max_size=N),
    )


def test_the_first_largest_is_found_on_ties_too():
    values = np.random.default_rng(3).integers(-2, 3, (200, 7)).astype(np.float32)
    values[0] = -np.inf
    found = jax.jit(first_largest)(jnp.asarray(values))
    assert found.tolist() == values.argmax(axis=1).tolist()
    assert first_largest(jnp.array([1.0, jnp.nan])).tolist() == 1


def similarities_of(points):
    # XLA flushes float32 below 1.2e-38 to zero: no differences may lie there.
    distances = numpy_distances(points).astype(np.float32)
    distances[distances < 1e-30] = 0
    return distances.max() - distances


def check_each_step_is_best(similarities, classes, quotas, picks, gains, tolerance):
    """Compare every pick's gain with the best gain at that step, in float64."""
    values = np.asarray(similarities, np.float64)
    start = 0
    for c, quota in enumerate(quotas):
        members = np.flatnonzero(classes == c)
        covered, taken = np.zeros(len(members)), []
        for pick, gain in zip(picks[start : start + quota], gains[start : start + quota], strict=True):
            assert classes[pick] == c
            assert pick not in taken
            rises = np.maximum(values[np.ix_(members, members)] - covered[:, None], 0).sum(axis=0)
            free = ~np.isin(members, taken)
            own = rises[members.tolist().index(pick)]
            assert rises[free].max() - own <= tolerance * rises[free].max()
            np.testing.assert_allclose(gain, own, rtol=2e-6)
            taken.append(pick)
            covered = np.maximum(covered, values[members, pick])
        start += quota
    assert start == len(picks)


@settings(deadline=None, max_examples=60)
@given(problem=problem_strategy(st.floats(-8, 8, width=32)))
def test_every_greedy_step_takes_the_best_gain(problem):
    points, classes = np.array(problem[0]), np.array(problem[1])
    similarities = similarities_of(points)
    quotas = quotas_by_fractions(np.bincount(classes, minlength=CLASSES).tolist(), M)
    picks = run_greedy(jnp.asarray(similarities), jnp.asarray(classes), jnp.array(quotas), M)
    check_each_step_is_best(
        similarities, classes, quotas, picks.indices.tolist(), picks.gains.tolist(), 1e-6
    )
    value = facility_location(similarities, picks.indices.tolist(), classes)
    np.testing.assert_allclose(float(jnp.sum(picks.gains)), value, rtol=3e-6, atol=1e-30)


@settings(deadline=None, max_examples=60)
@given(problem=problem_strategy(st.integers(0, 3)))
def test_greedy_and_coverage_on_a_grid_full_of_ties_match_numpy_exactly(problem):
    # City-block distances of grid points are whole numbers: float32 is exact and ties are true ties.
    points, classes = np.array(problem[0]), np.array(problem[1])
    distances = np.abs(points[:, None, :] - points[None, :, :]).sum(axis=2)
    similarities = jnp.asarray(distances.max() - distances, jnp.float32)
    counts = np.bincount(classes, minlength=CLASSES).tolist()
    quotas = quotas_by_fractions(counts, M)
    picks = run_greedy(similarities, jnp.asarray(classes), jnp.array(quotas), M)
    expected = numpy_greedy(similarities, classes, quotas)
    assert picks.indices.tolist() == expected
    assert float(jnp.sum(picks.gains)) == facility_location(similarities, expected, classes)
    weights = run_coverage(similarities, jnp.asarray(classes), picks.indices)
    assert weights.tolist() == numpy_coverage(similarities, classes, expected).tolist()
    assert float(weights.sum()) == N
    assert float(weights.min()) >= 1


def test_one_class_greedy_reaches_its_bound_against_all_subsets():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(15):
        similarities = similarities_of(rng.normal(size=(8, 2)) * rng.choice([0.1, 1, 5], (8, 1)))
        best = max(facility_location(similarities, chosen) for chosen in combinations(range(8), 3))
        picks = run_greedy(jnp.asarray(similarities), jnp.zeros(8, int), jnp.array([3]), 3)
        assert len(set(picks.indices.tolist())) == 3
        value = facility_location(similarities, picks.indices.tolist())
        np.testing.assert_allclose(float(jnp.sum(picks.gains)), value, rtol=1e-5)
        assert (1 - 1 / np.e) * best <= value <= best
        ratios.append(value / best)
    assert np.mean(ratios) > 0.95, "greedy is near optimal on easy problems"


def test_equal_points_are_taken_in_the_order_of_their_rows():
    similarities = jnp.zeros((N, N))
    picks = run_greedy(similarities, jnp.zeros(N, int), jnp.array([M, 0, 0]), M)
    assert picks.indices.tolist() == list(range(M))
    assert picks.gains.tolist() == [0.0] * M
    weights = run_coverage(similarities, jnp.zeros(N, int), picks.indices)
    assert weights.tolist() == [1.0 + N - M] + [1.0] * (M - 1)


def test_duplicates_of_a_pick_bring_no_gain():
    points = np.repeat([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]], [5, 5, 4], axis=0)
    similarities = jnp.asarray(similarities_of(points))
    picks = run_greedy(similarities, jnp.zeros(N, int), jnp.array([M, 0, 0]), M)
    assert sorted(picks.indices.tolist()[:3]) == [0, 5, 10]
    assert picks.indices.tolist()[3:] == [1, 2, 3]
    assert picks.gains.tolist()[3:] == [0.0, 0.0, 0.0]
    weights = run_coverage(similarities, jnp.zeros(N, int), picks.indices)
    assert dict(zip(picks.indices.tolist(), weights.tolist(), strict=True)) == {
        0: 2.0, 1: 1.0, 2: 1.0, 3: 1.0, 5: 5.0, 10: 4.0,
    }  # fmt: skip


def test_rows_of_a_class_without_picks_go_to_the_nearest_pick_of_any_class():
    rng = np.random.default_rng(1)
    for _ in range(10):
        similarities = similarities_of(rng.normal(size=(N, 2)))
        classes = rng.integers(0, CLASSES, N)
        chosen = rng.permutation(np.flatnonzero(classes != 2))[:M]
        weights = run_coverage(jnp.asarray(similarities), jnp.asarray(classes), jnp.asarray(chosen))
        assert weights.tolist() == numpy_coverage(similarities, classes, chosen.tolist()).tolist()
        assert float(weights.sum()) == N
