"""Greedy facility location with all that ``select_coreset`` can be asked for, in NumPy and float64."""

import numpy as np
import pytest
from oracles import dissimilarities


class Greedy:
    """One class: what is covered so far, and the gains of all candidates.

    Args:
      values: [n, m] dissimilarities of rows to candidates, or negated similarities.
      top: dissimilarity at which the similarity is 0.
      weights: [n].
      earlier: [n], dissimilarities to the nearest row of elsewhere, or None.
    """

    def __init__(self, values, top, weights, earlier=None):
        self.values, self.top, self.weights = values, top, weights
        self.cover = np.full(len(values), float(top))
        if earlier is not None:
            self.cover = np.minimum(self.cover, earlier)
        self.start = (weights * (top - self.cover)).sum()
        self.largest = self.value_of(np.arange(values.shape[1]))

    def value_of(self, picks):
        """The objective of some picks together with what lies elsewhere."""
        best = np.minimum(self.cover, self.values[:, picks].min(axis=1, initial=np.inf))
        return (self.weights * (self.top - best)).sum()

    def gains(self):
        """Gains [m] of all candidates now."""
        return (self.weights[:, None] * np.maximum(self.cover[:, None] - self.values, 0)).sum(axis=0)

    def take(self, pick):
        """Add a pick."""
        self.cover = np.minimum(self.cover, self.values[:, pick])

    @property
    def objective(self):
        """The objective so far."""
        return (self.weights * (self.top - self.cover)).sum()


FIXED = {"precomputed": 0.0, "dot": 0.0, "exponential": 1.0, "rbf": 1.0}  # tops


class Replay:
    """A problem class by class: what each row, candidate and class is.

    Args:
      values: [n, m] dissimilarities of rows to candidates.
      top: dissimilarity at which the similarity is 0; None: the largest that occurs.
      asked: arguments of ``select_coreset``.
      earlier: [n], dissimilarities to the nearest row of elsewhere, which ``initial`` are then.
      inside: whether candidates are the rows.
      near: [n, m] dissimilarities by which rows are assigned, infinite for never; None: the values.
    """

    def __init__(self, values, top, asked, earlier=None, inside=True, near=None):
        self.values, self.earlier, self.inside = values, earlier, inside
        self.near = values if near is None else near
        count, width = values.shape
        initial, candidates = asked.get("initial"), asked.get("candidates")
        self.first = [] if initial is None or earlier is not None else list(map(int, initial))
        self.allowed = np.ones(width, bool)
        if candidates is not None and np.ndim(candidates) == 1:
            self.allowed[:] = False
            self.allowed[candidates] = True
        pickable = self.allowed.copy()
        pickable[self.first] = True
        labels = asked.get("labels")
        self.codes = np.zeros(count, int) if labels is None else np.asarray(labels)
        self.own = np.zeros(width, int) if labels is None else self.codes
        same = (self.codes[:, None] == self.own[None, :]) & pickable[None, :]
        self.top = np.where(same, self.values, 0).max() if top is None else top
        weights = asked.get("sample_weights")
        self.weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
        self.runs = []
        for c in range(self.codes.max() + 1):
            here = self.codes == c
            values = np.where((self.own == c) & pickable, self.values[here], np.inf)
            own = None if earlier is None else earlier[here]
            self.runs.append(Greedy(values, self.top, self.weights[here], own))


def replay_of(x, asked):
    """The replay of rows [n, d], or of symmetric similarities."""
    metric, count = asked["metric"], len(x)
    initial, candidates = asked.get("initial"), asked.get("candidates")
    more = [rows for rows in (candidates, initial) if rows is not None and np.ndim(rows) == 2]
    others = candidates is not None and np.ndim(candidates) == 2
    elsewhere = initial is not None and np.ndim(initial) == 2
    values = dissimilarities(np.concatenate([x, *more]), metric)
    own = values[:count, count : count + len(candidates)] if others else values[:count, :count]
    earlier = values[:count, -len(initial) :].min(axis=1) if elsewhere else None
    return Replay(own, FIXED.get(metric), asked, earlier, inside=not others)


def draw_positions_and_weights(rng, kind, rows, width, asked):
    """Add to a random problem what its kind asks for of rows [n] and of the columns [k] of the pool."""
    if kind in ("weights", "all") or rng.random() < 0.3:
        asked["sample_weights"] = np.where(
            rng.random(rows) < 0.2, 0, rng.random(rows)
        ) * 10.0 ** rng.integers(-5, 6)
    if kind in ("initial", "all"):
        asked["initial"] = rng.permutation(width)[:4]
    if kind in ("candidates", "all"):
        mask = np.zeros(width, bool)
        mask[rng.permutation(width)[: 5 * width // 8]] = True
        asked["candidates"] = mask if rng.random() < 0.5 else np.flatnonzero(mask)
        if "labels" in asked:  # enough of each class for any quota
            asked["labels"] = np.where(mask, np.cumsum(mask), np.cumsum(~mask)) % 3


def best_by_costs(build, costs, budget):
    """The better objective of greedy by gain and greedy by gain over cost, within the budget."""
    found = []
    for scale in (np.ones(len(costs)), costs):
        run, left, free = build().runs[0], budget, np.ones(len(costs), bool)
        while True:
            gains = np.where(free & (costs <= left + 1e-6 * budget), run.gains(), 0)
            pick = int(np.argmax(gains / scale))
            if gains[pick] <= 0:
                break
            run.take(pick)
            free[pick], left = False, left - costs[pick]
        found.append(run.objective)
    return max(found)


def check(replay, asked, found, exact=True):
    """Follow the picks of a coreset in float64."""
    picks, gains = np.asarray(found.indices), np.asarray(found.gains, np.float64)
    assert len(set(picks.tolist())) == len(picks)
    assert (np.diff(replay.own[picks]) >= 0).all(), "class by class"
    scale = sum(run.largest for run in replay.runs)
    noise = 1e-6 * max(scale, sum((run.weights * abs(run.cover)).sum() for run in replay.runs))
    free = replay.allowed.copy()
    free[replay.first] = False
    share, stop = asked.get("coverage"), asked.get("stop_gain")
    for c, run in enumerate(replay.runs):
        slots = np.flatnonzero(replay.own[picks] == c)
        first = [row for row in replay.first if replay.own[row] == c]
        assert picks[slots][: len(first)].tolist() == first
        for turn, slot in enumerate(slots):
            adds = run.gains()
            gain = adds[picks[slot]]
            assert gains[slot] == pytest.approx(gain, rel=3e-6, abs=noise)
            if turn >= len(first):
                assert free[picks[slot]]
                if exact and "costs" not in asked:
                    mine = free & (replay.own == c)
                    assert adds[mine].max() - gain <= 1e-6 * adds[mine].max() + 0.3 * noise
                if share is not None:
                    assert run.objective <= (share + 3e-6) * run.largest + noise
                if stop is not None:
                    assert gain >= stop * (1 - 1e-5) - noise
            run.take(picks[slot])
            free[picks[slot]] = False
        if (share is not None or stop is not None) and asked["size"] is None:
            left = np.where(free & (replay.own == c), run.gains(), 0).max()
            if stop is not None:
                assert left < stop * (1 + 1e-5) + noise
            else:
                assert run.objective >= (share - 3e-6) * run.largest - noise
    if "costs" in asked:
        assert np.asarray(asked["costs"])[picks].sum() <= asked["budget"] * (1 + 1e-6)
    elif share is None and stop is None:
        assert len(picks) == asked["size"]
    value = sum(run.objective for run in replay.runs)
    assert float(found.objective) == pytest.approx(value, rel=1e-5, abs=noise)
    assert float(found.coverage) == pytest.approx(value / scale if scale else 1, abs=1e-5)
    check_assignments(replay, picks, found)


def check_assignments(replay, picks, found):
    """Every row counts at a pick that is nearest, up to rounding, or at a row of elsewhere."""
    slots, weights = np.asarray(found.assignments), np.asarray(found.weights)
    slack = 1e-5 * np.abs(replay.near[np.isfinite(replay.near)]).max()
    same = replay.codes[:, None] == replay.own[picks][None, :]
    apart = np.where(same, replay.near[:, picks], np.inf)
    nearest = apart.min(axis=1, initial=np.inf)
    if replay.earlier is not None:
        nearest = np.minimum(nearest, replay.earlier)
    itself = np.zeros(len(slots), bool)
    if replay.inside:
        assert slots[picks].tolist() == list(range(len(picks)))
        itself[picks] = True
    taken = slots >= 0
    own = apart[np.arange(len(slots)), slots] if len(picks) else np.full(len(slots), np.inf)
    assert (own <= nearest + slack)[taken & ~itself].all()
    if replay.earlier is not None:
        assert (replay.earlier <= nearest + slack)[~taken].all()
    else:
        lonely = np.isinf(nearest) & ~itself
        assert (lonely == ~taken).all()
    expected = np.bincount(slots[taken], replay.weights[taken], minlength=len(picks))
    if replay.earlier is None and expected.sum() > 0:  # rows at no pick count at all in proportion
        expected *= replay.weights.sum() / expected.sum()
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6 * replay.weights.sum())
