"""Push greedy, the exact choice for accelerators, against greedy in float64; and when it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from greedy_oracle import check, replay_of

from crest_jax import Factored, plan_coreset, select_coreset
from crest_jax.coresets import plan as plans
from crest_jax.coresets import solve
from crest_jax.coresets.oracles import gains_of
from crest_jax.coresets.plan import Shape, make_plan
from crest_jax.coresets.push import LOOKS, phases, push_greedy

GIB = 2**30


def largest_gap(x, picks):
    """The largest relative shortfall of a pick's gain in float64."""
    x = np.asarray(x, np.float64)
    values = np.stack([np.linalg.norm(x - row, axis=1) for row in x])
    cover, free, worst = np.full(len(x), values.max()), np.ones(len(x), bool), 0.0
    gains = np.maximum(cover[None] - values, 0).sum(axis=1)
    for pick in np.asarray(picks):
        best = gains[free].max()
        worst = max(worst, (best - gains[pick]) / max(best, 1e-30))
        new = np.minimum(cover, values[pick])
        rows = np.flatnonzero(new < cover)
        lost = np.maximum(cover[rows, None] - values[rows], 0)
        gains -= (lost - np.maximum(new[rows, None] - values[rows], 0)).sum(axis=0)
        cover, free[pick] = new, False
    return worst


@pytest.mark.parametrize(
    ("rows", "width"),
    [
        (2_000, 10),
        pytest.param(2_000, 64, marks=pytest.mark.slow),
        pytest.param(20_000, 10, marks=pytest.mark.slow),
    ],
)
def test_every_pick_has_the_largest_gain(rows, width):
    x = np.random.default_rng(width).normal(size=(rows, width)).astype(np.float32)
    found = select_coreset(x, rows // 10, method="push")
    assert largest_gap(x, found.indices) <= 1e-6
    assert len(set(found.indices.tolist())) == rows // 10
    assert float(found.weights.sum()) == rows


def test_duplicates_and_ties_go_to_the_lowest_row():
    distinct = np.random.default_rng(0).integers(0, 6, (60, 2)).astype(np.float32)
    x = np.repeat(distinct, 5, axis=0)
    found = select_coreset(x, 200, method="push")
    picks, kinds = np.asarray(found.indices), len(np.unique(distinct, axis=0))
    assert largest_gap(x, picks[: kinds - 1]) <= 1e-6
    _, kind = np.unique(x, axis=0, return_inverse=True)
    lowest = np.array([np.flatnonzero(kind == k)[0] for k in range(kinds)])
    assert (lowest[kind[picks[:kinds]]] == picks[:kinds]).all(), "the lowest of equal rows"
    assert (np.diff(picks[kinds:]) > 0).all(), "then nothing is gained, and the lowest rows come first"
    assert found.weights.sum() == 300


def test_all_rows_are_picked_where_gains_come_down_to_nothing():
    x = np.random.default_rng(1).normal(size=(150, 2)).astype(np.float32) * [1, 1e-4]
    found = select_coreset(x, 150, method="push")
    assert sorted(found.indices.tolist()) == list(range(150))
    assert float(found.coverage) == pytest.approx(1)


@pytest.mark.parametrize(
    "metric",
    ["cosine", *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("dot", "sqeuclidean", "manhattan", "correlation", "exponential", "rbf")
    )],
)  # fmt: skip
def test_it_agrees_with_lazy_greedy_in_every_metric(metric):
    x = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)
    x[3] = 0
    found, lazy = (select_coreset(x, 30, metric=metric, method=way) for way in ("push", "lazy"))
    np.testing.assert_allclose(found.gains, lazy.gains, rtol=2e-5, atol=1e-6)
    assert found.objective == pytest.approx(float(lazy.objective), rel=1e-6)
    assert found.weights.sum() == 200


def test_outer_products_are_chosen_without_being_formed():
    rng = np.random.default_rng(3)
    left, right = (rng.normal(size=(150, k)).astype(np.float32) for k in (3, 70))
    whole = np.einsum("nc,nd->ncd", left, right).reshape(150, -1)
    found = select_coreset(Factored(left, right), 20, method="push")
    assert largest_gap(whole, found.indices) <= 1e-5


@pytest.mark.parametrize(
    "kind",
    ["others", "labels", *(
        pytest.param(name, marks=pytest.mark.slow) for name in ("weights", "mask", "elsewhere")
    )],
)  # fmt: skip
def test_weights_candidates_and_rows_of_elsewhere(kind):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(220, 3)).astype(np.float32)
    asked = {
        "weights": {"sample_weights": rng.uniform(0, 3, 220)},
        "mask": {"candidates": rng.random(220) < 0.4},
        "elsewhere": {"initial": rng.normal(size=(9, 3)).astype(np.float32)},
        "others": {"candidates": rng.normal(size=(90, 3)).astype(np.float32)},
        "labels": {"labels": rng.integers(0, 3, 220), "sample_weights": rng.uniform(0.1, 3, 220)},
    }[kind] | {"size": 25, "metric": "euclidean"}
    found = select_coreset(x, method="push", **asked)
    check(replay_of(x, asked), asked, found)


@pytest.mark.parametrize(
    "asked",
    [
        {"coverage": 0.9}, {"stop_gain": 1.0}, {"size": 3, "initial": [1]},
        {"costs": np.ones(20), "budget": 3.0}, {"size": 3, "metric": "precomputed"},
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(asked):
    x = np.abs(np.random.default_rng(5).normal(size=(20, 20)))
    with pytest.raises(ValueError, match=r'method is "push" but .*; choose "lazy"\.$'):
        select_coreset(x, method="push", **asked)


def on_accelerator(rows, size, width=10, classes=1, room=20 * GIB, **more):
    quota = size // classes
    return Shape(
        rows, width, rows // classes, size, quota, rows / size, classes, 1, False, room=room, **more
    )


def test_an_accelerator_stores_what_fits_and_pushes_above():
    plan = lambda *args, **more: make_plan(on_accelerator(*args, **more), "auto", None, 0.1)  # noqa: E731
    assert plan(20_000, 2_000, classes=10).method == "dense"
    assert plan(20_000, 2_000, classes=10).seconds < 0.05
    assert plan(20_000, 2_000).method == "push"
    assert plan(20_000, 2_000).seconds < 0.4
    assert plan(100_000, 10_000, 64).method == "push"
    assert plan(100_000, 10_000, 64).seconds < 5
    assert plan(200_001, 1_000).method == "partitioned"
    assert plan(200_001, 1_000).pending > 0
    # Rules that end a choice are for the other methods.
    assert plan(20_000, 2_000, plain=False, exact=True).method == "dense"
    assert plan(100_000, 2_000, plain=False, exact=True).method == "lazy"
    small = plan(20_000, 2_000, room=GIB // 4)
    assert small.method == "push"
    assert small.memory <= GIB // 4


def test_a_plan_says_no_seconds_on_a_cpu():
    assert plan_coreset(np.zeros((5_000, 4)), 50).seconds is None


def test_many_problems_share_a_program_as_far_as_memory_goes():
    shape = Shape(300, 10, 300, 30, 30, 10.0, 1, 1000, False, room=GIB)
    assert 1 < make_plan(shape, "dense", None, 0.1).at_once < 1000
    assert make_plan(shape._replace(room=20 * GIB), "dense", None, 0.1).at_once == 1000


def test_auto_on_an_accelerator_chooses_the_same(monkeypatch):
    x = np.random.default_rng(6).normal(size=(900, 4)).astype(np.float32)
    labels = np.arange(900) % 3
    usual = select_coreset(x, 60), select_coreset(x, 60, labels=labels)
    monkeypatch.setattr(solve, "share_of_default_memory", lambda: 2**23)
    assert plan_coreset(x, 60).method == "push"
    assert plan_coreset(x, 60, labels=labels).method == "dense"
    for found, expected in zip(
        (select_coreset(x, 60), select_coreset(x, 60, labels=labels)), usual, strict=True
    ):
        assert found.indices.tolist() == expected.indices.tolist()
        np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.slow
def test_parts_are_pushed_on_an_accelerator(monkeypatch):
    x = np.random.default_rng(7).normal(size=(20_000, 3)).astype(np.float32)
    usual = select_coreset(x, 40, method="partitioned")
    monkeypatch.setattr(solve, "share_of_default_memory", lambda: GIB)
    assert plan_coreset(x, 40, method="partitioned").pending == plans.MOST_PENDING
    found = select_coreset(x, 40, method="partitioned")
    assert found.indices.tolist() == usual.indices.tolist()


class Near:
    """Candidates and clients by the matrix of their dissimilarities."""

    weights, begun = None, False

    def __init__(self, values):
        self.values, self.num_clients = values, values.shape[1]

    def begin(self):
        return jnp.max(self.values), jnp.full(self.num_clients, jnp.max(self.values), jnp.float32)

    def direct(self, rows):
        return self.values[rows]

    def direct_gains(self, cover):
        return gains_of(cover, self.values)

    def gains_lost(self, clients, before, after, each):
        less = before[None] - jnp.maximum(after[None], self.values[:, clients])
        return jnp.sum(jnp.maximum(less, 0) * each[None], axis=1)


@pytest.mark.slow
def test_rounding_of_a_thousand_small_losses_does_not_add_up():
    """Each pick takes one last digit from the gain of the row that is the best after them."""
    picks, others, count = 1000, 8, 1024
    top, own = np.float32(1.5), lambda row: slice(3 * row, 3 * row + 3)
    values, best = np.full((count, 3 * count), top, np.float32), picks + others
    for row in range(picks):
        values[row, own(row)] = row * np.float32(5e-5)
    values[best, : 3 * picks] = top - np.float32(2.0**-23)
    values[best, own(best)] = top - np.float32(1.4)
    for row in range(picks, best):
        values[row, own(row)] = top - np.float32(1.4 - 2e-5 / 3)
    choose = jax.jit(lambda x: push_greedy(Near(x), jnp.ones(count, bool), picks + 1, count, 8192))
    found = choose(jnp.asarray(values)).picks
    assert set(found[:picks].tolist()) == set(range(picks))
    assert found[picks] == best


def test_ties_that_a_pick_leaves_alone_are_not_looked_at_again():
    x = np.repeat(np.eye(128, dtype=np.float32), 4, axis=0)
    values = jnp.asarray(1 - x @ x.T)
    choose = jax.jit(lambda v: push_greedy(Near(v), jnp.ones(512, bool), 64, 64, 512))
    found = choose(values)
    assert found.picks.tolist() == list(range(0, 256, 4))
    assert (
        found.evaluations <= 4 * 512 + 2 * 64 * LOOKS
    )  # all in each of the four phases, and two turns


def test_every_phase_ends_at_four_times_the_picks_of_the_one_before():
    assert phases(1) == [1]
    assert phases(100) == [1, 4, 16, 64, 100]
    assert jnp.asarray(phases(4)).tolist() == [1, 4]
