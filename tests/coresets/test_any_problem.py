"""``select_coreset`` in every form, on any problem, against brute force in float64.

Each problem draws a metric, a scale, an offset, ties, a type of numbers, labels of any kind and quotas.
A choice must have the right number of different picks in each class, each with the largest gain, gains
and objective that are what the picks add, and weights that count the rows nearest to each pick.
"""

import warnings

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import dissimilarities, proportional, replay, weight_limits

from crest_jax import select_coreset, select_coreset_sharded, select_coreset_stream

FORMS = ("dense", "lazy", "stochastic", "partitioned", "auto", "array", "chunks", "sharded")
EXACT = ("dense", "lazy", "auto", "sharded")
METRICS = (
    "euclidean", "sqeuclidean", "manhattan", "cosine", "correlation", "exponential", "rbf", "dot",
    "precomputed",
)  # fmt: skip


@st.composite
def problems(draw):
    n, d = draw(st.sampled_from([2, 5, 24, 70, 130])), draw(st.sampled_from([1, 3, 17]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    metric, form = draw(st.sampled_from(METRICS)), draw(st.sampled_from(FORMS))
    shape = draw(st.sampled_from(["cloud", "grid", "duplicates", "clusters"]))
    x = rng.normal(size=(n, d))
    if shape == "grid":
        x = rng.integers(-2, 3, (n, d)).astype(float)
    elif shape == "duplicates":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif shape == "clusters":
        x = x * 1e-3 + 10 * rng.normal(size=(4, d))[rng.integers(0, 4, n)]
    kind = draw(st.sampled_from(["float32", "float64", "float16", "int64", "int32"]))
    if kind.startswith("float"):
        limit = 4 if kind == "float16" else 30
        x = x * 10.0 ** draw(st.integers(-limit, limit))
        if metric != "precomputed":
            x = x + draw(st.sampled_from([0.0, 0.0, 1.0, 100.0, 1e6])) * 10.0 ** draw(
                st.sampled_from([0, 0, -limit // 2])
            )
        if kind == "float16":
            x = np.clip(x, -6e4, 6e4)
    else:
        x = np.round(10 * x) + draw(
            st.sampled_from([0, 10**6, 2**31 - 500 if kind == "int32" else 10**12])
        )
    if metric == "cosine" and draw(st.booleans()):
        x[rng.integers(0, n, 2)] = 0
    if metric == "precomputed":
        apart = np.abs(x[:, None] - x[None]).sum(-1)
        s = {
            "cloud": x @ x.T,
            "grid": apart.max() - apart,
            "duplicates": rng.normal(size=(n, n)) * np.abs(x).max(),
            "clusters": np.abs(x @ x.T),
        }[shape]
        x = np.triu(s) + np.triu(s, 1).T
        x = np.clip(x, *{"float16": (-6e4, 6e4), "float32": (-3e38, 3e38)}.get(kind, (-1e9, 1e9)))
    x = x.astype(kind)
    size = draw(st.sampled_from([1, max(1, n // 4), n]))
    labels = None
    if draw(st.booleans()):
        classes = draw(st.sampled_from([1, 2, 3, 9]))
        names = draw(
            st.sampled_from([
                np.arange(classes), np.arange(classes) + 1, 7 * np.arange(classes) - 3,
                10**9 * np.arange(classes), np.array([f"class {c}" for c in range(classes)]),
            ])
        )  # fmt: skip
        labels = names[np.minimum(rng.geometric(0.4, n) - 1, classes - 1)]
    quotas = "proportional"
    if labels is not None and form not in ("array", "chunks") and draw(st.booleans()):
        found, counts = np.unique(labels, return_counts=True)
        each = np.zeros(len(found), int)
        for c in rng.permutation(np.repeat(np.arange(len(found)), counts))[:size]:
            each[c] += 1
        quotas = dict(zip(found.tolist(), each.tolist(), strict=True))
    return x, size, labels, metric, form, quotas


def run(x, size, labels, metric, form, quotas):
    """Return the coreset, or None where the problem is refused in a sentence that says why."""
    part = max(size, -(-len(x) // 2))
    numbers = None if labels is None else np.unique(labels, return_inverse=True)[1]
    try:
        if form == "sharded":
            mesh = jax.make_mesh((1,), ("data",))
            return select_coreset_sharded(
                x, size, mesh=mesh, labels=labels, metric=metric, quotas=quotas
            )
        if form == "array":
            return select_coreset_stream(x, size, labels=labels, metric=metric, part=part)
        if form == "chunks":
            cut = [slice(i, i + 7) for i in range(0, len(x), 7)]
            pieces = [x[s] if labels is None else [x[s], numbers[s]] for s in cut]
            return select_coreset_stream(iter(pieces), size, metric=metric, part=part)
        return select_coreset(x, size, labels=labels, metric=metric, quotas=quotas, method=form)
    except ValueError as error:
        text = str(error)
        assert len(text) < 500
        if "float32 cannot hold" in text:
            return None
        if metric == "precomputed":
            assert "metric is" in text or "method is" in text or "one must be positive" in text
            return None
        raise


def check(problem):
    x, size, labels, metric, form, quotas = problem
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "every similarity on the diagonal")
        found = run(*problem)
    if found is None:
        return False
    codes = np.zeros(len(x), int) if labels is None else np.unique(labels, return_inverse=True)[1]
    names = [0] if labels is None else np.unique(labels).tolist()
    if isinstance(quotas, dict):
        wanted = [quotas[name] for name in names]
    else:
        codes, wanted = expected_classes(codes, size)
    values = dissimilarities(x, metric)
    picks, weights = np.asarray(found.indices), np.asarray(found.weights, np.float64)
    assert len(set(picks.tolist())) == size == len(picks)
    assert np.bincount(codes[picks], minlength=len(wanted)).tolist() == wanted

    within = np.where(codes[:, None] == codes[None, :], values, -np.inf)
    with_pick = np.isin(codes, codes[picks])
    top = {"precomputed": 0.0, "exponential": 1.0, "rbf": 1.0, "dot": 0.0}.get(
        metric, within[with_pick].max()
    )
    # Weights: rows with two picks about equally near may count at either.
    slack = 3e-6 * np.abs(values[:, picks]).min(axis=1) + rounding(x, metric, values)
    counted = with_pick if quotas == "proportional" else np.ones(len(x), bool)
    least, most = weight_limits(values, codes, picks, slack, counted)
    assert weights.sum() == pytest.approx(len(x))
    assert weights.min() >= 1 - 1e-6
    weights = weights * counted.sum() / len(x)
    if form != "chunks":  # chunks are read once: weights are those of the parts
        assert (weights >= least - 1e-4).all(), (weights, least)
        assert (weights <= most + 1e-4).all(), (weights, most)
    if form in ("array", "chunks") or (top == 0 and metric not in ("precomputed", "dot")):
        return True
    gains, best, sums, value = replay(values, codes, picks, top)
    noise = 3e-6 * sums + len(x) * rounding(x, metric, values)
    noise = noise + np.finfo(np.float32).smallest_subnormal  # which gains [k], float32, are told in
    assert (np.abs(np.asarray(found.gains) - gains) <= 3e-6 * gains + noise).all()
    assert abs(float(found.objective) - value) <= 1e-5 * value + noise.sum()
    if form in EXACT:
        short = best - gains
        assert (short <= 1e-6 * best + 0.2 * noise).all(), (short / best, picks)
    return True


def rounding(x, metric, values):
    """What rounding to float32 near the origin may change in a dissimilarity, and to float64 before."""
    if metric == "dot":  # sums of products cancel
        return 2e-7 * x.shape[1] * np.abs(values).max()
    if metric in ("precomputed", "exponential", "rbf"):
        return 2e-7 * np.abs(values).max()
    if metric in ("cosine", "correlation"):  # half a squared distance of rows that have length 1
        return 4e-7 * values.max() + 1e-15 * np.sqrt(values.max())  # in float64
    return 4e-7 * values.max()


def expected_classes(codes, size):
    """The classes that count and the picks of each, by the documented rule."""
    counts = np.bincount(codes)
    if len(counts) <= size < 2 * len(counts):
        return np.zeros_like(codes), [size]
    if size < len(counts):
        largest = sorted(range(len(counts)), key=lambda c: (-counts[c], c))[:size]
        return codes, [int(c in largest) for c in range(len(counts))]
    quotas = proportional(counts, size)
    if min(quotas) > 0:
        return codes, quotas
    above = [max(size * int(count) - len(codes), 0) for count in counts]
    return codes, [1 + more for more in proportional(above, size - len(counts))]


COMMON = {
    "deadline": None, "derandomize": True, "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}  # fmt: skip


@settings(max_examples=8, **COMMON)
@given(problems())
def test_any_problem(problem):
    check(problem)


@pytest.mark.slow
def test_five_hundred_problems():
    solved = []

    @settings(max_examples=800, **COMMON)
    @given(problems())
    def every(problem):
        solved.append(check(problem))
        if len(solved) % 50 == 0:
            jax.clear_caches()  # compiled programs of all together exhaust a process's memory maps

    every()
    assert sum(solved) >= 500
