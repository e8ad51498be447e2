"""The contract of ``select_coreset``, and its picks against a NumPy greedy in float64."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import facility_location, numpy_coverage, numpy_distances, numpy_greedy

from crest_jax import Factored, plan_coreset, select_coreset
from crest_jax.coresets import by_class, dense
from experiments.benchmarks.peers import gaps

N, SIZE, CLASSES = 24, 9, 3


def make_problem(seed, n=N, classes=CLASSES):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    labels[:classes] = np.arange(classes)
    return np.float32(rng.normal(size=(n, 3)) + labels[:, None]), labels


def numpy_coreset(embeddings, size, labels):
    """Picks, weights and objective, all in float64; a pool with one to two picks a class as a whole."""
    classes = int(labels.max()) + 1
    if classes <= size < 2 * classes:
        labels, classes = np.zeros_like(labels), 1
    distances = numpy_distances(embeddings)
    similarities = distances[labels[:, None] == labels[None, :]].max() - distances
    shares = [Fraction(size * int(count), len(labels)) for count in np.bincount(labels)]
    quotas = [int(share) for share in shares]
    short = sorted(range(classes), key=lambda c: (quotas[c] - shares[c], c))[: size - sum(quotas)]
    quotas = [quota + (c in short) for c, quota in enumerate(quotas)]
    picks = numpy_greedy(similarities, labels, quotas)
    objective = facility_location(similarities, picks, labels)
    return picks, numpy_coverage(similarities, labels, picks), objective


@pytest.mark.parametrize("size", [3, 5, 9, N], ids=["one a class", "two", "by class", "everything"])
def test_coresets_match_numpy_in_float64(size):
    for seed in range(4):
        embeddings, labels = make_problem(seed)
        coreset = select_coreset(embeddings, size, labels=labels, num_classes=CLASSES)
        picks, weights, objective = numpy_coreset(embeddings, size, labels)
        assert coreset.indices.tolist() == picks
        assert coreset.weights.tolist() == weights.tolist()
        np.testing.assert_allclose(float(coreset.objective), objective, rtol=1e-5)
        np.testing.assert_allclose(float(coreset.gains.sum()), float(coreset.objective), rtol=1e-6)
        assert coreset.indices.dtype == jnp.int32


@pytest.mark.parametrize("classes", [1, 10, 100])
def test_size_is_exact_for_any_number_of_classes(classes):
    embeddings, labels = make_problem(0, n=300, classes=classes)
    coreset = select_coreset(embeddings, 128, labels=labels, num_classes=classes)
    assert len(set(coreset.indices.tolist())) == 128
    assert set(coreset.indices.tolist()) <= set(range(300))
    assert float(coreset.weights.sum()) == 300
    assert float(coreset.weights.min()) >= 1
    picked = np.bincount(labels[coreset.indices], minlength=classes)
    if classes == 10:
        expected = 128 * np.bincount(labels) / 300
        assert (np.abs(picked - expected) < 1).all()
        totals = np.bincount(labels[coreset.indices], weights=np.asarray(coreset.weights))
        assert totals.tolist() == np.bincount(labels).tolist()


def test_the_classes_are_kept_apart_from_two_picks_a_class_on():
    embeddings, labels = make_problem(1)
    embeddings = embeddings - labels[:, None]  # classes overlap, so that a joint choice mixes them
    counts = np.bincount(labels)
    for size, apart in ((2 * CLASSES, True), (2 * CLASSES - 1, False)):
        coreset = select_coreset(embeddings, size, labels=labels)
        own = labels[np.asarray(coreset.indices)]
        totals = np.bincount(own, weights=np.asarray(coreset.weights), minlength=CLASSES)
        assert (totals.tolist() == counts.tolist()) == apart
        assert float(coreset.weights.sum()) == N


def test_relabelling_the_rows_relabels_the_coreset():
    embeddings, labels = make_problem(2)
    coreset = select_coreset(embeddings, SIZE, labels=labels)
    order = np.random.default_rng(0).permutation(N)
    moved = select_coreset(embeddings[order], SIZE, labels=labels[order])
    assert order[np.asarray(moved.indices)].tolist() == coreset.indices.tolist()
    assert moved.weights.tolist() == coreset.weights.tolist()
    assert moved.indices.tolist() != coreset.indices.tolist()


@pytest.mark.slow
def test_compiled_equals_eager():
    embeddings, labels = make_problem(3, n=8, classes=2)

    def select(embeddings, labels):
        return select_coreset(embeddings, 4, labels=labels, num_classes=2)

    args = jnp.asarray(embeddings), jnp.asarray(labels)
    checked, compiled = select(*args), jax.jit(select)(*args)
    with jax.disable_jit():
        eager = select(*args)
    for other in (compiled, eager):
        assert other.indices.tolist() == checked.indices.tolist()
        assert other.weights.tolist() == checked.weights.tolist()
        np.testing.assert_allclose(other.gains, checked.gains, rtol=1e-6)


def test_a_batch_of_pools_equals_a_loop():
    problems = [make_problem(seed) for seed in range(5)]
    embeddings, labels = (jnp.stack([jnp.asarray(p[i]) for p in problems]) for i in (0, 1))
    together = jax.vmap(lambda e, y: select_coreset(e, SIZE, labels=y, num_classes=CLASSES))(
        embeddings, labels
    )
    assert len({tuple(row) for row in together.indices.tolist()}) == 5
    for k, (e, y) in enumerate(problems):
        alone = select_coreset(e, SIZE, labels=y, num_classes=CLASSES)
        assert together.indices[k].tolist() == alone.indices.tolist()
        assert together.weights[k].tolist() == alone.weights.tolist()
        np.testing.assert_allclose(together.objective[k], alone.objective, rtol=1e-6)


@pytest.mark.slow
def test_pools_of_one_shape_share_one_program():
    programs = dense._solve.compiled(), by_class.choose_by_class_compiled.compiled()
    before = [program._cache_size() for program in programs]
    for seed in range(3):  # NumPy and JAX arrays alike
        embeddings, _ = make_problem(seed, n=17)
        labels = np.random.default_rng(seed).permutation(np.arange(17) % CLASSES)
        kind = jnp.asarray if seed == 1 else np.asarray
        for method in ("dense", "lazy"):
            select_coreset(kind(embeddings), 7, labels=kind(labels), num_classes=CLASSES, method=method)
    assert [program._cache_size() for program in programs] == [count + 1 for count in before]


def test_factored_embeddings_choose_as_their_outer_products_do():
    rng = np.random.default_rng(4)
    left, right = np.float32(rng.normal(size=(N, 3))), np.float32(rng.normal(size=(N, 5)))
    labels = rng.integers(0, CLASSES, N)
    outer = (left.astype(np.float64)[:, :, None] * right[:, None, :]).reshape(N, -1)
    coreset = select_coreset(Factored(left, right), SIZE, labels=labels)
    picks, weights, objective = numpy_coreset(outer, SIZE, labels)
    assert coreset.indices.tolist() == picks
    assert coreset.weights.tolist() == weights.tolist()
    np.testing.assert_allclose(float(coreset.objective), objective, rtol=1e-5)


def test_missing_classes_and_classes_of_one_example_work():
    embeddings, _ = make_problem(5)
    labels = np.array([4] + [1] * 11 + [2] * 12)  # 0 and 3 are missing; class 4 gets its one pick
    coreset = select_coreset(embeddings, 10, labels=labels, num_classes=5)
    assert np.bincount(labels[coreset.indices], minlength=5).tolist() == [0, 4, 5, 0, 1]
    assert float(coreset.weights.sum()) == N
    similarities = -numpy_distances(embeddings)
    weights = numpy_coverage(similarities, labels, coreset.indices.tolist())
    assert coreset.weights.tolist() == weights.tolist()
    everything = select_coreset(embeddings, N, labels=labels, num_classes=5)
    assert sorted(everything.indices.tolist()) == list(range(N))
    assert everything.weights.tolist() == [1.0] * N


def test_without_labels_the_pool_is_one_class():
    embeddings, labels = make_problem(6)
    plain = select_coreset(embeddings, SIZE)
    picks, weights, objective = numpy_coreset(embeddings, SIZE, np.zeros_like(labels))
    assert plain.indices.tolist() == picks
    assert plain.weights.tolist() == weights.tolist()
    np.testing.assert_allclose(float(plain.objective), objective, rtol=1e-5)


GOOD = np.random.default_rng(7).normal(size=(6, 2)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def spoilt(value):
    embeddings = GOOD.copy()
    embeddings[[3, 5], 1] = value
    return embeddings


@pytest.mark.parametrize("shape", [(100, 20), (100, 41), (600, 10), (300, 384)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_one_bad_number_among_many_is_found(shape, bad, form):
    """XLA's maxima on a CPU pass over NaN in arrays that are large."""
    values = np.random.default_rng(0).normal(size=shape)
    values[shape[0] // 2, shape[1] // 2] = bad
    values = jnp.asarray(values, form) if form is jnp.bfloat16 else values.astype(form)
    for options in ({}, {"metric": "cosine"}, {"method": "lazy"}):
        with pytest.raises(
            ValueError, match=rf"1 of {shape[0]} examples are NaN .*row {shape[0] // 2}"
        ):
            select_coreset(values, 5, **options)


def test_one_bad_number_among_many_similarities_is_found():
    similarities = np.random.default_rng(0).uniform(size=(80, 80)).astype(np.float32)
    similarities[9, 40] = np.nan
    for given in (similarities, jnp.asarray(similarities)):
        with pytest.raises(ValueError, match=r"1 of 80 examples are NaN .*row 9"):
            select_coreset(given, 5, metric="precomputed")


@pytest.mark.parametrize(
    ("embeddings", "size", "options", "message"),
    [
        (np.zeros((0, 2)), 1, {}, r"shape \(0, 2\).*at least one example; pass"),
        (spoilt(np.nan), 2, {}, "2 of 6 examples are NaN or infinite .*row 3.*; check"),
        (spoilt(-np.inf), 2, {}, "2 of 6 examples are NaN or infinite .*row 3.*; check"),
        (spoilt(1e37), 2, {"metric": "sqeuclidean"}, "objective is .*float32 cannot hold; multiply"),
        (Factored(GOOD, spoilt(np.nan)), 2, {}, "2 of 6 examples are NaN.*row 3.*; check"),
        (Factored(GOOD, GOOD[:5]), 2, {}, r"\(6, 2\) and \(5, 2\).*must agree; pass"),
        (GOOD[:, 0], 2, {}, r"shape \(6,\).*; flatten"),
        (np.zeros((4, 0)), 2, {}, r"shape \(4, 0\).*; flatten"),
        ((), 2, {}, r"shape \(0,\).*; flatten"),
        (GOOD, 0, {}, "size is 0 but must be an integer of at least 1; pass"),
        (GOOD, 2.0, {}, "size is 2.0 but must be an integer.*; pass"),
        (GOOD, True, {}, "size is True but must be an integer.*; pass"),
        (GOOD, 7, {}, "size is 7 but the pool holds 6 examples.*; ask for at most 6"),
        (GOOD, 2, {"metric": "hamming"}, "metric is 'hamming' but must be one of euclid.*; choose"),
        (GOOD, 2, {"method": "fast"}, "method is 'fast' but must be one of auto.*; choose"),
        (GOOD, 2, {"epsilon": 0.0}, r"epsilon is 0.0 but must lie in \(0, 0.999\]; choose"),
        (
            GOOD,
            2,
            {"memory_budget": 0},
            "memory_budget is 0 but must be an integer of at least 1; pass",
        ),
        (GOOD, 2, {"memory_budget": 9}, "memory_budget is 9 bytes but .* needs at least .*; raise"),
        (GOOD, 2, {"quotas": "equal"}, "quotas are 'equal' but there are no labels.*; pass"),
        (GOOD, 2, {"labels": LABELS, "quotas": "fair"}, "quotas is 'fair' but must be.*; choose"),
        (GOOD, 2, {"labels": LABELS, "quotas": [1]}, r"quotas have shape \(1,\).*2 non-neg.*; pass"),
        (GOOD, 2, {"labels": LABELS, "quotas": [-1, 3]}, r"quotas have .*non-negative.*; pass"),
        (GOOD, 2, {"labels": LABELS, "quotas": [2, 1]}, "quotas sum to 3 but size is 2.*; change"),
        (GOOD, 5, {"labels": LABELS, "quotas": [4, 1]}, "4 picks of class 0 but it has 3 .*; lower"),
        (GOOD, 3, {"metric": "precomputed"}, "size is 3 but the pool holds 2 columns.*; ask"),
        (
            GOOD @ GOOD.T,
            2,
            {"metric": "precomputed", "method": "partitioned"},
            "is read as a whole; choose",
        ),
        (GOOD, 2, {"labels": LABELS[:5]}, r"labels have shape \(5,\).*\(6,\).*; pass"),
        (GOOD, 2, {"labels": LABELS[:, None]}, r"labels have shape \(6, 1\).*\(6,\).*; pass"),
        (GOOD, 2, {"labels": LABELS / 2}, "labels have dtype float64.*whole numbers or strings; cast"),
        (GOOD, 2, {"labels": LABELS - 1, "num_classes": 2}, r"labels span -1 to 0.*; renumber"),
        (GOOD, 2, {"labels": LABELS + 3, "num_classes": 4}, r"labels span 3 to 4.*\[0, 4\); renumber"),
    ],
)
def test_bad_input_raises_a_sentence_with_the_value_and_a_remedy(embeddings, size, options, message):
    with pytest.raises(ValueError, match=message) as error:
        select_coreset(embeddings, size, **options)
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text


def test_traced_labels_need_the_number_of_classes():
    select = jax.jit(lambda e, y: select_coreset(e, 2, labels=y))
    with pytest.raises(ValueError, match=r"num_classes is None.* traced.*; pass num_classes"):
        select(GOOD, LABELS)


@pytest.mark.slow
def test_a_budget_that_is_too_small_is_told_the_smallest_that_works():
    embeddings, _ = make_problem(0, n=300)
    for method in ("auto", "dense", "lazy", "stochastic"):
        with pytest.raises(ValueError, match="needs at least") as error:
            select_coreset(embeddings, 20, method=method, memory_budget=1000)
        smallest = int(str(error.value).split("raise memory_budget to ")[1].rstrip("."))
        assert plan_coreset(embeddings, 20, method=method, memory_budget=smallest).memory <= smallest
        with pytest.raises(ValueError, match="needs at least"):
            plan_coreset(embeddings, 20, method=method, memory_budget=smallest - 1)
        assert len(select_coreset(embeddings, 20, method=method, memory_budget=smallest).indices) == 20


@pytest.mark.parametrize("method", ["dense", "lazy"])
def test_narrow_floats_are_computed_in_float32(method):
    embeddings, labels = make_problem(8)
    for kind in (jnp.bfloat16, jnp.float16):
        narrow = jnp.asarray(embeddings, kind)
        wide = select_coreset(narrow.astype(jnp.float32), SIZE, labels=labels, method=method)
        found = select_coreset(narrow, SIZE, labels=labels, method=method)
        assert found.indices.tolist() == wide.indices.tolist()
        assert found.gains.tolist() == wide.gains.tolist()
        assert found.gains.dtype == jnp.float32


@pytest.mark.parametrize("method", ["dense", "lazy", "stochastic"])
def test_problems_side_by_side_equal_one_by_one(method):
    problems = [make_problem(seed) for seed in range(3)]
    embeddings, labels = (np.stack([p[i] for p in problems]) for i in (0, 1))
    together = select_coreset(embeddings, SIZE, labels=labels, num_classes=CLASSES, method=method)
    assert together.indices.shape == together.weights.shape == (3, SIZE)
    for k, (e, y) in enumerate(problems):
        alone = select_coreset(e, SIZE, labels=y, num_classes=CLASSES, method=method)
        assert together.indices[k].tolist() == alone.indices.tolist()
        assert together.weights[k].tolist() == alone.weights.tolist()
        np.testing.assert_allclose(together.objective[k], alone.objective, rtol=1e-6)


@pytest.mark.parametrize("method", ["dense", "lazy"])
def test_quotas_can_be_equal_or_given(method):
    embeddings, labels = make_problem(9)
    counts = np.bincount(labels)
    equal = select_coreset(embeddings, 7, labels=labels, quotas="equal", method=method)
    assert np.bincount(labels[equal.indices]).tolist() == [3, 2, 2]
    given = select_coreset(embeddings, 4, labels=labels, quotas=[1, 3, 0], method=method)
    own = labels[np.asarray(given.indices)]
    assert own.tolist() == [0, 1, 1, 1]
    # Rows of the class without a pick go to the nearest pick of any class.
    similarities = -numpy_distances(embeddings)
    expected = numpy_coverage(similarities, labels, given.indices.tolist())
    assert given.weights.tolist() == expected.tolist()
    assert float(given.weights.sum()) == counts.sum()


@pytest.mark.parametrize("method", ["dense", "lazy", "stochastic"])
def test_given_similarities_are_read_as_they_are(method):
    rng = np.random.default_rng(10)
    labels = np.arange(40) % 2
    points = rng.normal(size=(40, 3))
    similarities = np.float32(np.exp(-numpy_distances(points)) - 0.05)  # some are negative
    for own in (None, labels):
        found = select_coreset(similarities, 9, labels=own, metric="precomputed", method=method)
        classes = np.zeros(40, int) if own is None else own
        value = facility_location(similarities, found.indices.tolist(), classes)
        np.testing.assert_allclose(float(found.objective), value, rtol=1e-6)
        assert (
            found.weights.tolist()
            == numpy_coverage(similarities, classes, found.indices.tolist()).tolist()
        )
        for label in np.unique(classes) if method != "stochastic" else []:
            rows = np.flatnonzero(classes == label)
            picks = [int(np.flatnonzero(rows == p)[0]) for p in found.indices if p in rows]
            values = -similarities[np.ix_(rows, rows)].astype(np.float64)
            assert gaps(values, np.array(picks), 0.0).max() <= 1e-6


def test_a_plan_tells_what_the_selection_then_does():
    shapes = {
        "dense": (300, 32),
        "lazy": (5_000, 32),
        "partitioned": (2_000_000, 32),
    }
    for method, shape in shapes.items():
        pool = jax.ShapeDtypeStruct(shape, jnp.float32)
        plan = plan_coreset(pool, shape[0] // 100)
        assert plan.method == method
        assert plan.exact == (method != "partitioned")
    with pytest.raises(ValueError, match="needs at least"):
        plan_coreset(jax.ShapeDtypeStruct((2_000_000, 32), jnp.float32), 100, memory_budget=2**20)
