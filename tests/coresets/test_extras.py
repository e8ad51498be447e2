"""What ``select_coreset`` takes beside a size, on random problems, against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from greedy_oracle import Greedy
from oracles import dissimilarities

from crest_jax import Factored, select_coreset

N, D, K = 40, 3, 12
METRICS = ("euclidean", "sqeuclidean", "cosine", "exponential", "precomputed")
KINDS = (
    "weights",
    "initial",
    "earlier",
    "candidates",
    "others",
    "costs",
    "stop_gain",
    "coverage",
    "all",
)
EXACT = ("dense", "lazy")


def problem(kind, seed):
    """Arguments of a random problem: embeddings, and what is asked for."""
    rng = np.random.default_rng(seed)
    plain = kind in ("earlier", "others")
    metric = METRICS[int(rng.integers(4 if plain else 5))]
    x = rng.normal(size=(N, D)) * rng.choice([0.1, 1, 5], (N, 1))
    if metric == "precomputed":
        s = x @ x.T + rng.normal(size=(N, N))
        x = (s + s.T) / 2
    asked = {"metric": metric, "size": 10}
    if kind not in ("earlier", "others", "costs") and rng.random() < 0.5:
        asked["labels"] = rng.permutation(np.arange(N) % 3)
    if kind in ("weights", "all") or rng.random() < 0.3:
        asked["sample_weights"] = np.where(
            rng.random(N) < 0.2, 0, rng.random(N)
        ) * 10.0 ** rng.integers(-5, 6)
    if kind in ("initial", "all"):
        asked["initial"] = rng.permutation(N)[:4]
    if kind in ("candidates", "all"):
        mask = np.zeros(N, bool)
        mask[rng.permutation(N)[:25]] = True
        asked["candidates"] = mask if rng.random() < 0.5 else np.flatnonzero(mask)
        if "labels" in asked:  # enough of each class for any quota
            asked["labels"] = np.where(mask, np.cumsum(mask), np.cumsum(~mask)) % 3
    if kind == "earlier":
        asked["initial"] = rng.normal(size=(5, D)) * 2
    if kind == "others":
        asked["candidates"] = rng.normal(size=(K, D)) * 2
    if kind == "costs":
        asked["costs"] = rng.integers(1, 6, N) if rng.random() < 0.5 else rng.uniform(0.1, 2, N)
        asked["budget"] = float(rng.integers(6, 20))
        asked["size"] = None
    if kind in ("stop_gain", "coverage", "all"):
        asked["size"] = None if kind != "all" else 20
    x = x.astype(np.float32)
    asked = {k: v.astype(np.float32) if getattr(v, "ndim", 0) == 2 else v for k, v in asked.items()}
    if kind in ("coverage", "all"):
        asked["coverage"] = float(rng.uniform(0.3, 0.99))
    if kind == "stop_gain":
        one = Replay(x, {**asked, "size": 1})
        asked["stop_gain"] = float(rng.uniform(0.01, 0.3) * max(run.gains().max() for run in one.runs))
    return x, asked


class Replay:
    """A problem class by class: what each row, candidate and class is."""

    def __init__(self, x, asked):
        metric = asked["metric"]
        initial, candidates = asked.get("initial"), asked.get("candidates")
        rows = [x]
        self.others = candidates is not None and np.ndim(candidates) == 2
        rows += [candidates] if self.others else []
        self.elsewhere = initial is not None and np.ndim(initial) == 2
        rows += [initial] if self.elsewhere else []
        values = dissimilarities(np.concatenate(rows), metric)
        self.values = values[:N, N : N + K] if self.others else values[:N, :N]
        self.earlier = values[:N, -len(initial) :].min(axis=1) if self.elsewhere else None
        self.first = [] if initial is None or self.elsewhere else list(map(int, initial))
        width = self.values.shape[1]
        self.allowed = np.ones(width, bool)
        if candidates is not None and not self.others:
            self.allowed[:] = False
            self.allowed[candidates] = True
        pickable = self.allowed.copy()
        pickable[self.first] = True
        self.pickable = pickable
        labels = asked.get("labels")
        self.codes = np.zeros(N, int) if labels is None else np.asarray(labels)
        self.own = np.zeros(width, int) if labels is None else self.codes
        same = (self.codes[:, None] == self.own[None, :]) & pickable[None, :]
        largest = np.where(same, self.values, 0).max()
        self.top = {"precomputed": 0.0, "exponential": 1.0}.get(metric, largest)
        weights = asked.get("sample_weights")
        self.weights = np.ones(N) if weights is None else np.asarray(weights, np.float64)
        self.runs = []
        for c in range(self.codes.max() + 1):
            here = self.codes == c
            values = np.where((self.own == c) & pickable, self.values[here], np.inf)
            earlier = None if self.earlier is None else self.earlier[here]
            self.runs.append(Greedy(values, self.top, self.weights[here], earlier))


def best_by_costs(replay, costs, budget):
    """The better objective of greedy by gain and greedy by gain over cost, within the budget."""
    found = []
    for scale in (np.ones(len(costs)), costs):
        run, left, free = Replay(*replay).runs[0], budget, np.ones(len(costs), bool)
        while True:
            gains = np.where(free & (costs <= left + 1e-6 * budget), run.gains(), 0)
            pick = int(np.argmax(gains / scale))
            if gains[pick] <= 0:
                break
            run.take(pick)
            free[pick], left = False, left - costs[pick]
        found.append(run.objective)
    return max(found)


def check(x, asked, found, exact=True):
    """Follow the picks of a coreset in float64."""
    replay = Replay(x, asked)
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
    slack = 1e-5 * np.abs(replay.values).max()
    apart = np.where(
        replay.codes[:, None] == replay.own[picks][None, :], replay.values[:, picks], np.inf
    )
    nearest = apart.min(axis=1, initial=np.inf)
    if replay.earlier is not None:
        nearest = np.minimum(nearest, replay.earlier)
    itself = np.zeros(len(slots), bool)
    if not replay.others:
        assert slots[picks].tolist() == list(range(len(picks)))
        itself[picks] = True
    taken = slots >= 0
    own = apart[np.arange(len(slots)), slots] if len(picks) else np.full(len(slots), np.inf)
    assert (own <= nearest + slack)[taken & ~itself].all()
    if replay.earlier is not None:
        assert (replay.earlier <= nearest + slack)[~taken].all()
    else:
        lonely = ~np.isin(replay.codes, replay.own[picks])
        assert (lonely == ~taken).all()
        if lonely.any():
            return  # their weight is spread over all picks
    expected = np.bincount(slots[taken], replay.weights[taken], minlength=len(picks))
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6 * replay.weights.sum())


def solve(kind, seed, method):
    x, asked = problem(kind, seed)
    found = select_coreset(x, method=method, **asked)
    check(x, asked, found, exact=method in EXACT)
    if kind == "costs":
        best = best_by_costs((x, asked), np.asarray(asked["costs"], np.float64), asked["budget"])
        assert float(found.objective) >= best * (1 - 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_of_each_kind(kind):
    solve(kind, 7 * KINDS.index(kind) + 1, EXACT[KINDS.index(kind) % 2])


@pytest.mark.slow
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_problems_of_each_kind(kind, method):
    for seed in range(200):
        solve(kind, seed, method)
        if seed % 50 == 49:
            jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["weights", "initial", "earlier", "candidates", "others", "coverage", "all"]
)
def test_stochastic_greedy_obeys_the_same_rules(kind):
    for seed in range(40):
        solve(kind, seed, "stochastic")


X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.mark.parametrize("method", EXACT)
def test_picks_of_a_size_are_the_first_of_any_larger_size(method):
    small, large = (select_coreset(X, size, method=method) for size in (5, 10))
    assert large.indices[:5].tolist() == small.indices.tolist()
    grown = select_coreset(X, 10, method=method, initial=small.indices)
    assert grown.indices.tolist() == large.indices.tolist()
    assert grown.weights.tolist() == large.weights.tolist()
    assert grown.assignments.tolist() == large.assignments.tolist()
    np.testing.assert_allclose(grown.gains, large.gains, rtol=1e-6)


def test_a_given_matrix_takes_candidates_and_first_picks():
    s = X @ X.T
    asked = {"metric": "precomputed", "size": 10, "candidates": np.arange(20), "initial": [30, 5]}
    found = select_coreset(s, method="lazy", **asked)
    check(s, asked, found)
    assert found.indices.tolist() == select_coreset(s, method="dense", **asked).indices.tolist()


def test_proportional_quotas_make_room_for_first_picks():
    labels = np.arange(N) % 4
    found = select_coreset(X, 12, labels=labels, initial=[0, 4, 8, 12, 16, 20], method="dense")
    assert np.bincount(labels[found.indices]).tolist() == [6, 2, 2, 2]


def test_whole_numbers_cost_exactly_what_they_say():
    costs = np.full(N, 3)
    found = select_coreset(X, costs=costs, budget=3 * 10**7, method="dense")
    assert len(found.indices) == N
    tenth = select_coreset(X, costs=np.full(N, 0.1), budget=0.3, method="dense")
    assert len(tenth.indices) == 3
    assert len(select_coreset(X, costs=costs, budget=11, method="dense").indices) == 3


def test_inside_jit_weights_first_picks_and_a_mask_do_the_same():
    mask, weights = np.arange(N) % 2 == 0, np.arange(N) / 7.0
    asked = {"sample_weights": weights, "candidates": mask, "initial": np.array([3, 4])}
    inside = jax.jit(lambda x, asked: select_coreset(x, 6, **asked))(X, asked)
    outside = select_coreset(X, 6, method="dense", **asked)
    assert inside.indices.tolist() == outside.indices.tolist()
    assert inside.assignments.tolist() == outside.assignments.tolist()
    np.testing.assert_allclose(inside.weights, outside.weights, rtol=1e-6)
    np.testing.assert_allclose(inside.coverage, outside.coverage, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", EXACT)
def test_several_problems_are_solved_one_by_one(method):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, N, D)).astype(np.float32)
    asked = {
        "sample_weights": rng.random((3, N)),
        "initial": np.stack([rng.permutation(N)[:3] for _ in range(3)]),
        "candidates": rng.random((3, N)) < 0.8,
    }
    found = select_coreset(x, 8, method=method, batched=True, **asked)
    for p in range(3):
        own = {"metric": "euclidean", "size": 8, **{name: value[p] for name, value in asked.items()}}
        check(x[p], own, jax.tree.map(lambda leaf, p=p: leaf[p], found))


@pytest.mark.slow
def test_outer_products_take_rows_of_elsewhere():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(N, 2)).astype(np.float32), rng.normal(size=(N, 3)).astype(np.float32)
    whole = np.einsum("na,nb->nab", a, b).reshape(N, -1)
    for method in EXACT:
        got = select_coreset(Factored(a[5:], b[5:]), 6, initial=Factored(a[:5], b[:5]), method=method)
        want = select_coreset(whole[5:], 6, initial=whole[:5], method=method)
        assert got.indices.tolist() == want.indices.tolist()
        assert got.weights.tolist() == want.weights.tolist()


@pytest.mark.slow
def test_parts_count_sample_weights():
    x = np.random.default_rng(3).normal(size=(20_000, 3)).astype(np.float32)
    near = np.where(x[:, 0] > 0, 1.0, 0.0)
    found = select_coreset(x, 50, method="partitioned", sample_weights=near)
    assert float(found.weights.sum()) == pytest.approx(near.sum())
    values = np.linalg.norm(x[:, None] - x[None, np.asarray(found.indices)], axis=2)
    expected = np.bincount(values.argmin(axis=1), near, minlength=50)
    np.testing.assert_allclose(found.weights, expected, atol=1e-3)
    alone = select_coreset(x[near > 0], 50, method="lazy")
    heads = x[near > 0][np.asarray(alone.indices)]
    best = np.linalg.norm(x[near > 0][:, None] - heads[None], axis=2).min(axis=1).mean()
    assert values[near > 0].min(axis=1).mean() < 1.15 * best


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
def test_peers_start_from_the_same_subset_and_pay_the_same_costs():
    apricot = pytest.importorskip("apricot")
    submodlib = pytest.importorskip("submodlib")
    values = dissimilarities(X, "euclidean")
    s = values.max() - values
    first = np.array([3, 9, 11])
    ours = select_coreset(s.astype(np.float32), 10, metric="precomputed", initial=first)
    model = apricot.FacilityLocationSelection(
        7, metric="precomputed", initial_subset=first, optimizer="naive"
    )  # its lazy form breaks ties in another order
    assert model.fit(s).ranking.tolist() == ours.indices[3:].tolist()
    costs = np.random.default_rng(4).integers(1, 5, N)
    found = select_coreset(s.astype(np.float32), metric="precomputed", costs=costs, budget=20)
    function = submodlib.FacilityLocationFunction(n=N, sijs=s, separate_rep=False, mode="dense")
    theirs = [
        [row for row, _ in function.maximize(
            budget=20, optimizer="NaiveGreedy", costs=costs.tolist(), costSensitiveGreedy=by_ratio,
            show_progress=False,
        )]
        for by_ratio in (False, True)
    ]  # fmt: skip
    reached = max(s[:, rows].max(axis=1).sum() for rows in theirs)
    assert float(found.objective) >= reached * (1 - 1e-6)


def test_the_share_covered_is_1_only_with_every_row():
    assert float(select_coreset(X, N, method="dense").coverage) == pytest.approx(1, abs=1e-6)
    assert float(select_coreset(jnp.zeros((N, D)), 3, method="dense").coverage) == 1
