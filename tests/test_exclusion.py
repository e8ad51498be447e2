"""Exclusion against a simulation with dictionaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.exclusion import (
    Exclusion,
    close_window,
    in_play,
    init_exclusion,
    observe,
    stands_for,
)

COUNT, CLASSES, ALPHA = 30, 3, 0.1
run_observe, run_close = jax.jit(observe), jax.jit(close_window, static_argnames="windows")


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
        state, out = init_exclusion(COUNT), {}
        for _ in range(6):
            sightings = {}
            for _ in range(3):
                active = np.array(sorted(set(range(COUNT)) - (set() if kept else set(out))))
                rows = rng.choice(active, 8)  # with repeats
                losses = np.float32(rng.choice([0.01, 0.05, 0.1, 0.3], 8, p=[0.5, 0.4, 0.05, 0.05]))
                for row, loss in zip(rows.tolist(), losses, strict=True):
                    sightings.setdefault(row, []).append(loss)
                state = run_observe(state, jnp.asarray(rows), jnp.asarray(losses))
            highest = [max(sightings.get(row, [-np.inf])) for row in range(COUNT)]
            assert state.highest.tolist() == [float(x) for x in highest]
            before = set(out)
            out, dry = simulate_close(sightings, out, classes, needed, windows)
            state = run_close(
                state, jnp.asarray(classes), jnp.asarray(needed, jnp.int32), ALPHA, windows=windows
            )
            assert state.rest.tolist() == [out.get(row, 0) for row in range(COUNT)]
            assert set(np.flatnonzero(state.excluded).tolist()) == set(out)
            assert not (np.asarray(state.highest) > -np.inf).any(), "a new window has seen nothing"
            dried += dry
            returns += len(before - set(out)) if not dry else 0
            leaves += len(set(out) - before)
    assert dried >= (5 if windows is None else 1)
    assert leaves >= 50
    assert (returns == 0) == (windows is None), "without a dry class only time brings examples back"


def close(state, classes, needed, alpha=ALPHA):
    return run_close(state, jnp.asarray(classes), jnp.asarray(needed), alpha).excluded.tolist()


def test_the_threshold_is_strict_and_unseen_examples_stay():
    losses = np.float32([0.1, 0.0999999, 0.0, 0.2])
    state = run_observe(init_exclusion(5), jnp.arange(4), jnp.asarray(losses))
    assert close(state, [0] * 5, [0]) == [False, True, True, False, False]


def test_one_high_loss_among_repeats_keeps_an_example():
    state = init_exclusion(3)
    state = run_observe(state, jnp.array([0, 0, 0, 1]), jnp.array([0.01, 0.5, 0.01, 0.01]))
    state = run_observe(state, jnp.array([1, 1, 0, 1]), jnp.array([0.02, 0.03, 0.01, 0.02]))
    assert close(state, [0] * 3, [0]) == [False, True, False]


def test_an_unknown_loss_never_excludes():
    losses = jnp.array([jnp.nan, 0.01, jnp.nan, 0.01])
    state = run_observe(init_exclusion(3), jnp.array([0, 0, 1, 2]), losses)
    assert close(state, [0] * 3, [0]) == [False, False, True]


def test_only_the_class_that_would_run_dry_returns():
    classes = [0, 0, 0, 1, 1, 1]
    state = run_observe(init_exclusion(6), jnp.array([0, 1, 3, 4]), jnp.full(4, 0.01))
    assert close(state, classes, [1, 1]) == [True, True, False, True, True, False]
    assert close(state, classes, [2, 1]) == [False, False, False, True, True, False]
    assert close(state, classes, [1, 2]) == [True, True, False, False, False, False]


def test_excluded_examples_stay_out_without_being_seen_and_may_leave_again():
    classes, needed = jnp.zeros(4, int), jnp.array([2])
    state = run_observe(init_exclusion(4), jnp.array([0]), jnp.array([0.01]))
    state = run_close(state, classes, needed, ALPHA)
    state = run_close(state, classes, needed, ALPHA)
    assert state.excluded.tolist() == [True, False, False, False]
    state = run_observe(state, jnp.array([1, 2]), jnp.array([0.01, 0.01]))
    state = run_close(state, classes, needed, ALPHA)
    assert state.excluded.tolist() == [False] * 4
    state = run_observe(state, jnp.array([0]), jnp.array([0.01]))
    state = run_close(state, classes, needed, ALPHA)
    assert state.excluded.tolist() == [True, False, False, False]


def test_an_excluded_example_returns_after_its_windows():
    state = run_observe(init_exclusion(3), jnp.array([0]), jnp.array([0.01]))
    out = []
    for _ in range(4):
        state = run_close(state, jnp.zeros(3, int), jnp.array([1]), ALPHA, windows=2)
        out.append(bool(state.excluded[0]))
    assert out == [True, True, False, False]


@pytest.mark.parametrize("keep", [0.25, 0.7])
def test_the_rows_kept_stand_for_all_the_learned_ones(keep):
    rng = np.random.default_rng(7)
    learned = rng.random(200) < 0.6
    state = Exclusion(jnp.zeros(200), jnp.asarray(learned, jnp.int8))
    values, rows, total, kept = rng.normal(size=200), jnp.arange(200), [], []
    for seed in range(400):
        inside = np.asarray(in_play(state, keep, jax.random.key(seed)))
        assert inside[~learned].all()
        total.append((np.asarray(stands_for(state, rows, keep)) * values)[inside].sum())
        kept.append(inside[learned].mean())
    variance = (values[learned] ** 2).sum() * (1 - keep) / keep
    assert abs(np.mean(total) - values.sum()) <= 4 * np.sqrt(variance / 400), "biased"
    assert np.std(total) == pytest.approx(np.sqrt(variance), rel=0.15)
    assert np.mean(kept) == pytest.approx(keep, abs=0.02)


def test_nothing_learned_is_in_play_where_none_is_kept():
    state = Exclusion(jnp.zeros(4), jnp.array([0, 2, 0, 1], jnp.int8))
    assert in_play(state, 0.0, jax.random.key(0)).tolist() == [True, False, True, False]
    assert stands_for(state, jnp.arange(4), 0.0).tolist() == [1.0] * 4
