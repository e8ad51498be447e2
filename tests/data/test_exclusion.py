"""Exclusion against a simulation with dictionaries."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.data import make_strata, open_stream
from crest_jax.data.classes import one_class
from crest_jax.data.exclusion import (
    ExclusionConfig,
    close_window,
    importance_weights,
    init_exclusion,
    noted_in,
    observe,
    observe_losses,
)
from crest_jax.data.pool import Pool, close, draw, make_rules, open_pool, weighted_subset
from crest_jax.data.pool import observe as observe_in
from crest_jax.data.sampler import all_in_play, rearranged

COUNT, CLASSES, ALPHA = 30, 3, 0.1
close_compiled = jax.jit(close_window, static_argnames="cooldown")


def init(count, classes, windows=None, capacity=64):
    return init_exclusion(count, classes, capacity=capacity, cooldown=windows)


def run_close(state, classes, needed, windows=None):
    sizes = np.bincount(np.asarray(classes), minlength=len(needed))
    return close_compiled(
        state, jnp.asarray(classes), jnp.asarray(sizes, jnp.int32), jnp.asarray(needed, jnp.int32),
        cooldown=windows,
    )  # fmt: skip


def windows_left(state, windows):
    """For each row the windows that it stays out, 0 in play."""
    rest, slot = np.asarray(state.inactive.left_at).astype(int), int(state.slot)
    if windows is None:
        return rest.tolist()
    left = (rest - 1 - slot) % windows  # of the slot at which it left, seen from the next one
    return np.where(rest > 0, left + 1, 0).tolist()


def run_observe(state, rows, losses):
    return observe_losses(state, rows, losses, ALPHA)


def simulate_close(sightings, out, classes, needed, windows):
    """The rows out of play after a window, each with the windows left, from all losses seen."""
    left = {row: rest if windows is None else rest - 1 for row, rest in out.items()}
    out = {row: rest for row, rest in left.items() if rest > 0}
    for row, losses in sightings.items():
        if all(x < np.float32(ALPHA) for x in losses):
            out[row] = windows or 1
    dry = 0
    for c, need in enumerate(needed):
        members = {row for row in range(COUNT) if classes[row] == c}
        if len(members - set(out)) < need:
            dry += bool(members & set(out))
            out = {row: rest for row, rest in out.items() if row not in members}
    return out, dry


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("windows", [None, 1, 3])
def test_windows_match_a_simulation(windows, kept):
    dried = leaves = returns = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        classes = rng.choice(CLASSES, COUNT, p=[0.6, 0.3, 0.1])
        needed = np.bincount(classes, minlength=CLASSES) * rng.choice([0.2, 0.5]) // 1
        state, out = init(COUNT, CLASSES, windows), {}
        for _ in range(6):
            sightings = {}
            for _ in range(3):
                active = np.array(sorted(set(range(COUNT)) - (set() if kept else set(out))))
                rows = rng.choice(active, 8)  # with repeats
                losses = np.float32(rng.choice([0.01, 0.05, 0.1, 0.3], 8, p=[0.5, 0.4, 0.05, 0.05]))
                for row, loss in zip(rows.tolist(), losses, strict=True):
                    sightings.setdefault(row, []).append(loss)
                state = run_observe(state, jnp.asarray(rows), jnp.asarray(losses))
            assert int(state.num_observations) == 24
            before = set(out)
            out, dry = simulate_close(sightings, out, classes, needed, windows)
            state = run_close(state, classes, needed, windows)
            assert windows_left(state, windows) == [out.get(row, 0) for row in range(COUNT)]
            assert state.inactive.counts.tolist() == [
                sum(classes[row] == c for row in out) for c in range(CLASSES)
            ]
            assert set(np.flatnonzero(state.excluded).tolist()) == set(out)
            assert int(state.num_observations) == 0
            assert (np.asarray(state.observations) == 2**32 - 1).all(), "a new window has seen nothing"
            if windows is not None:
                assert state.left_per_slot.sum(axis=0).tolist() == state.inactive.counts.tolist()
            dried += dry
            returns += len(before - set(out)) if not dry else 0
            leaves += len(set(out) - before)
    assert dried >= (5 if windows is None else 1)
    assert leaves >= 50
    assert (returns == 0) == (windows is None), "without a dry class only time brings examples back"


def excluded_after(state, classes, needed):
    return run_close(state, classes, needed).excluded.tolist()


def test_the_threshold_is_strict_and_unseen_examples_stay():
    losses = np.float32([0.1, 0.0999999, 0.0, 0.2])
    state = run_observe(init(5, 1), jnp.arange(4), jnp.asarray(losses))
    assert excluded_after(state, [0] * 5, [0]) == [False, True, True, False, False]


def test_one_high_loss_among_repeats_keeps_an_example():
    state = init(3, 1)
    state = run_observe(state, jnp.array([0, 0, 0, 1]), jnp.array([0.01, 0.5, 0.01, 0.01]))
    state = run_observe(state, jnp.array([1, 1, 0, 1]), jnp.array([0.02, 0.03, 0.01, 0.02]))
    assert excluded_after(state, [0] * 3, [0]) == [False, True, False]


def test_an_unknown_loss_never_excludes():
    losses = jnp.array([jnp.nan, 0.01, jnp.nan, 0.01])
    state = run_observe(init(3, 1), jnp.array([0, 0, 1, 2]), losses)
    assert excluded_after(state, [0] * 3, [0]) == [False, False, True]


def test_only_the_class_that_would_run_dry_returns():
    classes = [0, 0, 0, 1, 1, 1]
    state = run_observe(init(6, 2), jnp.array([0, 1, 3, 4]), jnp.full(4, 0.01))
    assert excluded_after(state, classes, [1, 1]) == [True, True, False, True, True, False]
    assert excluded_after(state, classes, [2, 1]) == [False, False, False, True, True, False]
    assert excluded_after(state, classes, [1, 2]) == [True, True, False, False, False, False]


def test_excluded_examples_stay_out_without_being_seen_and_may_leave_again():
    classes, needed = jnp.zeros(4, int), jnp.array([2])
    state = run_observe(init(4, 1), jnp.array([0]), jnp.array([0.01]))
    state = run_close(state, classes, needed)
    state = run_close(state, classes, needed)
    assert state.excluded.tolist() == [True, False, False, False]
    state = run_observe(state, jnp.array([1, 2]), jnp.array([0.01, 0.01]))
    state = run_close(state, classes, needed)
    assert state.excluded.tolist() == [False] * 4
    state = run_observe(state, jnp.array([0]), jnp.array([0.01]))
    state = run_close(state, classes, needed)
    assert state.excluded.tolist() == [True, False, False, False]


def test_an_excluded_example_returns_after_its_windows():
    state = run_observe(init(3, 1, windows=2), jnp.array([0]), jnp.array([0.01]))
    out = []
    for _ in range(4):
        state = run_close(state, jnp.zeros(3, int), jnp.array([1]), windows=2)
        out.append(bool(state.excluded[0]))
    assert out == [True, True, False, False]


@pytest.mark.parametrize("num_classes", [3, 100])
def test_those_out_are_counted_by_class_however_many_classes_there_are(num_classes):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, num_classes, 400).astype(np.uint8)
    rows = rng.permutation(400)[:150]
    state = run_observe(init(400, num_classes, capacity=200), jnp.asarray(rows), jnp.full(150, 0.01))
    state = run_close(state, classes, np.zeros(num_classes))
    assert state.inactive.counts.tolist() == np.bincount(classes[rows], minlength=num_classes).tolist()


def test_of_more_sightings_than_are_remembered_the_newest_count():
    state = init(6, 1, capacity=4)
    for row in range(6):
        state = run_observe(state, jnp.array([row]), jnp.array([0.01]))
    assert excluded_after(state, [0] * 6, [0]) == [False, False, True, True, True, True]


def test_only_the_first_sightings_count_where_their_number_is_given():
    state = init(6, 1)
    rows, losses = jnp.arange(4), jnp.full(4, 0.01)
    state = state._replace(**observe(noted_in(state), rows, losses, ALPHA, 2)._asdict())
    state = run_observe(state, jnp.array([5]), jnp.array([0.01]))
    assert excluded_after(state, [0] * 6, [0]) == [True, True, False, False, False, True]


def test_rows_up_to_the_largest_number_are_noted():
    row = 2**31 - 2
    state = run_observe(init(2, 1), jnp.array([row]), jnp.array([0.01]))
    assert int(state.observations[0]) == 2 * row + 1 < 2**32 - 1


def test_where_none_is_kept_every_row_stands_for_itself():
    rest = jnp.array([0, 2, 0, 1], jnp.int8)
    assert importance_weights(rest, jnp.arange(4), 0.0).tolist() == [1.0] * 4
    assert importance_weights(rest, jnp.arange(4), 0.5).tolist() == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("losses", [jnp.float32(0), jnp.zeros((2, 1)), jnp.zeros(2, int), jnp.zeros(3)])
def test_losses_must_be_one_number_for_each_row(losses):
    with pytest.raises(ValueError, match=r"losses handed to observe are .* but must .*; pass the step"):
        run_observe(init(3, 1), jnp.arange(2), losses)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_loss_is_remembered_until_the_window_ends(bad):
    state = run_observe(init(4, 1), jnp.arange(2), jnp.array([0.01, bad]))
    state = run_observe(state, jnp.arange(2), jnp.array([0.01, 0.01]))
    assert not state.all_finite
    assert run_close(state, [0] * 4, [0]).all_finite


def pool_of(exclusion):
    every = all_in_play(make_strata(np.zeros(4, int), 1))
    return Pool(open_stream(jax.random.key(0), 1), every, exclusion, 8, 0, 1.0)


def test_the_end_of_a_window_tells_a_bad_loss_unless_such_are_skipped():
    own = ExclusionConfig(threshold=ALPHA, window=8, cooldown=None, keep_fraction=0.0)
    exclusion = run_observe(init(4, 1), jnp.arange(2), jnp.array([jnp.nan, 0.01]))
    pool = pool_of(exclusion)
    stop, skip = (
        make_rules(one_class(4), largest_draw=1, exclusion=own, capacity=64, skip_nonfinite=skipped)
        for skipped in (False, True)
    )
    with pytest.raises(
        FloatingPointError, match=r"before step 8 but all must be finite; .*\"skip\"\.$"
    ):
        close(stop, pool, 8)
    assert close(skip, pool, 8).excluded == 1


def test_when_exclusion_ends_all_return_in_a_new_pass():
    own = ExclusionConfig(threshold=ALPHA, window=8, cooldown=4, keep_fraction=0.0, until=20)
    rules = make_rules(one_class(4), largest_draw=1, exclusion=own, capacity=64)
    exclusion = run_observe(init(4, 1, windows=4), jnp.arange(2), jnp.array([jnp.nan, 0.01]))
    pool = pool_of(exclusion)._replace(excluded=1)
    ended = close(rules, pool, 20)
    assert (ended.excluded, ended.in_play.sizes.tolist()) == (0, [4])
    assert ended.stream.cursors.tolist() == ended.stream.later.tolist() == [0]
    assert ended.stream.passes.tolist() == [1]
    assert bool(ended.exclusion.all_finite)
    assert not ended.exclusion.excluded.any()
    assert close(rules, ended, 21) is ended


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", -1.0), ("threshold", 0.0), ("window", 0), ("cooldown", 0), ("cooldown", 128),
        ("relative", 1), ("relative", "yes"),
        ("keep_fraction", 1.5), ("until", 0),
    ],
)  # fmt: skip
def test_settings_that_break_their_rule_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} is .* but must .*;"):
        dataclasses.replace(ExclusionConfig.recommended(), **{field: value})


def expected_share(m, p, a):
    """Mean of ``a K / (a K + m - K)`` for K of Binomial(m, p): the weight of the learned in a batch."""
    chances = [math.comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m + 1)]
    return sum(c * a * k / (a * k + m - k) for k, c in enumerate(chances))


@pytest.mark.parametrize(("m", "share"), [(8, 0.5), (16, 0.3)])
def test_learned_examples_kept_fall_short_by_what_is_documented(m, share):
    count, keep, streams, draws = 4000, 0.25, 500, 40  # 320 or 640 of some 2,500 rows in play
    learned = np.arange(count) < share * count
    rest = jnp.asarray(learned, jnp.int8)
    strata = make_strata(np.zeros(count, int), 1)

    def weigh(key):
        stream, every = open_stream(key, 1), all_in_play(strata)
        stream, some = rearranged(stream, strata, every, rest > 0, keep)

        def draw(stream, _):
            stream, rows, weights = weighted_subset(stream, strata, some, rest, m, keep)
            own = jnp.sum(jnp.where(rest[rows] > 0, weights, 0.0))
            return stream, (own / jnp.sum(weights), own, jnp.sum(weights))

        return jax.lax.scan(draw, stream, length=draws)[1]

    part, own, total = (
        np.asarray(x, np.float64).ravel()
        for x in jax.jit(jax.vmap(weigh))(jax.random.split(jax.random.key(0), streams))
    )
    # Sums are right on average ...
    assert own.mean() / total.mean() == pytest.approx(share, rel=0.01)
    # ... their quotient is what the formula says, and clearly below.
    a, p = 1 / keep, share * keep / (share * keep + 1 - share)
    error = part.std() / np.sqrt(streams * draws)
    assert part.mean() == pytest.approx(expected_share(m, p, a), abs=4 * error)
    assert part.mean() < share - 8 * error
    # The documented approximation, and its figures for mini-batches of 128.
    short = 1 - part.mean() / share
    assert short == pytest.approx(shortfall(m, p, a), rel=0.25)


def shortfall(m, p, a):
    return (a - 1) * (1 - p) / (1 + (a - 1) * p) ** 2 / m


def test_the_shortfall_of_mini_batches_of_128_is_between_the_documented_figures():
    for share, documented in ((0.5, 0.007), (0.01, 0.023)):
        p = share * 0.25 / (share * 0.25 + 1 - share)
        exact = 1 - expected_share(128, p, 4.0) / share
        assert exact == pytest.approx(documented, abs=0.0006)
        assert shortfall(128, p, 4.0) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("hard", "window", "keep", "cooldown"),
    [(0.5, 4, 0.25, 4), (0.5, 20, 0.25, 4), (0.05, 4, 0.0, 4), (0.5, 4, 0.25, None)],
)
def test_learned_and_other_examples_weigh_alike_however_short_the_windows(hard, window, keep, cooldown):
    """Windows of a tenth or half a pass: each example stands for one in each pass."""
    count, size, steps = 400, 10, 1600
    own = ExclusionConfig(0.02, window, cooldown, keep)
    source = one_class(count)
    rules = make_rules(source, largest_draw=size, exclusion=own, capacity=window * size)
    pool, weight = open_pool(rules, jax.random.key(0)), np.zeros(count)
    high = np.arange(count) < hard * count
    for step in range(steps):
        pool = close(rules, pool, step)
        pool, rows, weights = draw(rules, pool, size)
        np.add.at(weight, np.asarray(rows), np.asarray(weights))
        pool = observe_in(rules, pool, rows, jnp.where(jnp.asarray(high)[rows], 1.0, 0.0))
    passes = int(pool.stream.passes[0])
    assert passes >= steps * size // count
    assert weight[high].mean() == pytest.approx(passes, rel=0.05)
    if keep:
        assert weight[~high].mean() == pytest.approx(passes, rel=0.08)
    else:  # what is out weighs nothing, and comes again when it is back
        assert passes / 2 < weight[~high].mean() < passes
    assert (weight[high] >= passes - 1).all()


def test_a_relative_threshold_is_in_units_of_the_first_losses():
    state = init_exclusion(6, 1, capacity=16, cooldown=2, relative=True)
    state = run_observe(state, jnp.array([0, 1]), jnp.array([30.0, 50.0]))  # so a unit is 40
    assert float(state.unit) == 40.0
    state = run_observe(state, jnp.array([2, 3, 4]), jnp.array([3.9, 4.1, 3.9]))
    state = run_observe(state, jnp.array([4]), jnp.array([4.1]))
    assert float(state.unit) == 40.0, "the unit stays that of the start"
    state = run_close(state, np.zeros(6, int), [1], 2)
    assert state.excluded.tolist() == [False, False, True, False, False, False]
    state = run_close(state, np.zeros(6, int), [1], 2)
    assert float(state.unit) == 40.0, "over windows also"
    absolute = init(6, 1)
    assert float(run_observe(absolute, jnp.array([0]), jnp.array([30.0])).unit) == 1.0


def test_a_unit_is_taken_of_what_counts_and_of_no_infinite_loss():
    noted = noted_in(init_exclusion(6, 1, capacity=16, relative=True))
    bad = observe(noted, jnp.array([0, 1]), jnp.array([jnp.nan, 1.0]), ALPHA)
    assert float(bad.unit) < 0, "not known yet"
    found = observe(bad, jnp.array([0, 1, 2]), jnp.array([2.0, 4.0, 100.0]), ALPHA, 2)
    assert float(found.unit) == 3.0


def test_no_example_is_learned_while_the_unit_is_negative():
    noted = noted_in(init_exclusion(2, 1, capacity=4, relative=True))
    noted = observe(noted, jnp.array([0, 1]), jnp.array([-5.0, -5.0]), ALPHA)
    assert (noted.observations[:2] & 1).tolist() == [0, 0]


def test_losses_times_a_number_leave_the_same_rows_with_a_relative_threshold():
    losses = np.float32(np.random.default_rng(0).exponential(size=(6, 5)))
    found = []
    for factor in (1.0, 256.0):
        state = init_exclusion(30, 1, capacity=64, relative=True)
        for step, own in enumerate(losses * factor):
            state = run_observe(state, jnp.arange(5 * step, 5 * step + 5), jnp.asarray(own))
        found.append(run_close(state, np.zeros(30, int), [1]).excluded.tolist())
    assert found[0] == found[1]
    assert 0 < sum(found[0]) < 30
