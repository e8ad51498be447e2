"""What people pass: each form of embeddings, labels, quotas and keys is taken rightly, or refused."""

import os
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from helpers import numpy_distances
from small_settings import settings

from crest_jax import (
    ArraySource,
    Factored,
    crest,
    plan_coreset,
    select_coreset,
    select_coreset_sharded,
    select_coreset_stream,
)
from crest_jax.coresets.mini_batch import medoids
from crest_jax.data.classes import classes_of

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
WANT = select_coreset(X, 5).indices.tolist()
BY_CLASS = select_coreset(X, 6, labels=Y).indices.tolist()


def picks(embeddings, size=5, **options):
    return select_coreset(embeddings, size, **options).indices.tolist()


class Table:
    """What a data frame looks like to NumPy."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(object)


@pytest.mark.parametrize(
    "form",
    [
        X.tolist(),
        [X[:30], X[30:]],
        [X[:20], X[20:40], X[40:]],
        [jnp.asarray(X[:7]), X[7:]],
        [X[:30].tolist(), X[30:].tolist()],
        list(X),
        X.astype(">f4"),
        X.astype(np.longdouble),
        X.astype(object),
        np.asfortranarray(X),
        Table(X),
        np.ma.masked_array(X, np.zeros(X.shape, bool)),
    ],
    ids=["rows", "two batches", "three", "mixed", "nested", "list of rows", "big-endian", "longdouble",
         "object", "columns first", "table", "nothing masked"],
)  # fmt: skip
def test_forms_of_the_same_rows_give_the_same_picks(form):
    assert picks(form) == WANT


def test_whole_numbers_of_any_size_are_exact():
    rows = (np.arange(60) * 2**28)[:, None]
    assert picks(rows, 1)[0] in (29, 30)
    assert picks(rows.astype(np.uint64) + np.uint64(2**63), 1)[0] in (29, 30)
    assert picks(rows // 2**28 + 10**12, 3) == picks(np.arange(60.0)[:, None], 3)
    assert picks(X > 0, 5) == picks((X > 0).astype(np.float32), 5)
    far = np.random.default_rng(1).normal(size=(80, 3))
    assert picks(far + 1e9, 7) == picks(far, 7), "float64 keeps its digits"
    s = np.full((4, 4), 1, np.int64)
    np.fill_diagonal(s, 10)
    s[0, :] = s[:, 0] = 2**31 + 5
    assert picks(s, 1, metric="precomputed") == [0]


REFUSED = [
    (scipy.sparse.csr_matrix(X), {}, "sparse.*csr.*dense; pass .toarray"),
    (X + 1j, {}, "complex64 but must be real.*; pass real and imaginary"),
    (jnp.asarray(X) + 1j, {}, "complex64 but must be real.*; pass"),
    (X.astype(str), {}, "dtype <U.* but must be real numbers; encode"),
    (np.zeros((60, 4), "datetime64[s]"), {}, "datetime64.* real numbers; encode"),
    ({"a": X}, {}, "must be an array.*; pass"),
    (None, {}, "None but must be an array.*; pass"),
    ("X", {}, "'X' but must be an array.*; pass"),
    ((X, X), {}, "tuple of two arrays.*Factored"),
    ([X, X[:, :2]], {}, "2 arrays of 2 different widths"),
    ([[1.0, 2.0], [3.0]], {}, "must make one array of numbers.*; pass"),
    (np.ma.masked_greater(X, 1.0), {}, "masked entries.*; fill"),
    (np.array([[None, 1.0]] * 6), {}, "6 of 6 examples are NaN"),
    (np.zeros((50, 8, 8), np.float32), {}, "reads as 50 problems of 8 examples; pass batched=True"),
    (np.zeros((50, 8, 9), np.uint8), {}, "reads as 50 problems"),
    (np.zeros((500, 12, 9), np.float32), {}, "reads as 500 problems"),
    (np.zeros((9, 12, 4), np.float32), {"labels": np.arange(9)}, "reads as 9 problems"),
    (np.zeros((9, 12, 4, 3), np.float32), {}, "flatten"),
    (X, {"batched": True}, "batched is True but"),
    (X, {"labels": [[0], [1, 2]]}, "lists of different lengths"),
    (X, {"labels": Y.astype(float)}, "labels have dtype float64.*; cast"),
    (X, {"labels": Y, "quotas": {7: 5}}, "quotas name the class 7 but no example"),
    (X, {"labels": Y + 1, "quotas": [1, 2, 2, 0]}, "1 picks of classes that no example has"),
    (X, {"key": 7, "method": "stochastic"}, "key is 7 but must be one PRNG key; pass jax.random.key"),
    (X, {"key": jax.random.split(jax.random.key(0))}, "key is .* but must be one PRNG key"),
    (X, {"metric": X}, "metric is a float32 array of shape"),
    (X, {"method": None}, "method is None but must be one of"),
    (-numpy_distances(X), {"metric": "precomputed"}, "one must be positive.*; pass s - s.min"),
]


@pytest.mark.parametrize(("embeddings", "options", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_in_a_short_sentence(embeddings, options, message):
    with pytest.raises(ValueError, match=message) as error:
        select_coreset(embeddings, 5, **options)
    text = str(error.value)
    assert len(text) < 400
    assert "\n" not in text
    assert text.endswith(".")


def test_problems_are_told_from_images():
    problems = X.reshape(5, 12, 4)
    apart = [picks(one, 3) for one in problems]
    assert picks(problems, 3) == apart
    square = np.random.default_rng(2).normal(size=(20, 4, 4)).astype(np.float32)
    assert np.shape(picks(square, 2, batched=True)) == (20, 2)
    assert np.shape(picks(square, 2, labels=np.zeros((20, 4), int))) == (20, 2)
    assert plan_coreset(jax.ShapeDtypeStruct((20, 4, 4), jnp.float32), 2, batched=True).exact
    with pytest.raises(ValueError, match=r"jax.vmap"):
        jax.jit(lambda x: select_coreset(x, 3))(problems)


LETTERS = np.array(["b", "c", "x"])
NAMES = [
    Y + 1, np.where(Y == 2, 7, Y), 10**9 * Y, Y - 5, Y.astype(np.uint8), LETTERS[Y],
    LETTERS[Y].tolist(), Y.astype(object), Y.tolist(),
]  # fmt: skip


@pytest.mark.parametrize("labels", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("quotas", ["proportional", "equal", [2, 2, 2]])
def test_the_names_of_classes_change_nothing(labels, quotas):
    assert picks(X, 6, labels=labels, quotas=quotas) == BY_CLASS


def test_quotas_go_by_place_by_number_or_by_name():
    labels = np.where(Y == 2, 7, Y)
    want = picks(X, 6, labels=Y, quotas=[1, 2, 3])
    assert picks(X, 6, labels=labels, quotas=[1, 2, 3]) == want
    assert picks(X, 6, labels=labels, quotas=[1, 2, 0, 0, 0, 0, 0, 3]) == want
    assert picks(X, 6, labels=labels, quotas={0: 1, 7: 3, 1: 2}) == want
    with pytest.raises(ValueError, match="class 7"):
        select_coreset(X, 25, labels=labels, quotas={0: 1, 7: 24})


def test_classes_of_any_numbers():
    assert classes_of(np.array([-128, 127, -128], np.int8)).codes.tolist() == [0, 1, 0]
    assert classes_of(np.array([2**63, 2**64 - 1], np.uint64)).codes.tolist() == [0, 1]
    assert classes_of([True, False]).names.tolist() == [False, True]
    assert classes_of([]).number == 0


def test_masked_labels_are_refused():
    labels = np.ma.array([0, 0, 0, 1, 1, 1], mask=[0, 0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"labels have masked entries .* fill them"):
        select_coreset(np.arange(6.0)[:, None], 4, labels=labels)


def test_distances_given_as_similarities_are_warned_of():
    distances = numpy_distances(X)
    with pytest.warns(UserWarning, match="as in a matrix of distances; if these are"):
        select_coreset(distances, 5, metric="precomputed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_coreset(np.exp(-distances), 5, metric="precomputed")
        select_coreset(np.ones((3, 3)), 2, metric="precomputed")


@pytest.mark.slow
def test_similarities_whose_diagonal_is_not_the_largest():
    rank_one = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    for method in ("dense", "lazy", "stochastic"):
        found = select_coreset(rank_one, 3, metric="precomputed", method=method)
        assert float(found.objective) == 18.0
        assert found.gains.tolist() == [18.0, 0.0, 0.0]
    hollow = np.array([[0, 5, 1], [5, 0, 1], [1, 1, 0.0]])
    with pytest.warns(UserWarning, match="diagonal"):
        found = select_coreset(hollow, 2, metric="precomputed")
    assert float(found.objective) == 11.0
    assert found.weights.sum() == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "lazy", "stochastic", "partitioned"])
def test_sizes_of_numbers_change_no_pick(method):
    for metric in ("euclidean", "cosine"):
        want = select_coreset(X, 5, metric=metric, method=method)
        for scale in (1e-38, 1e-30, 1e-20, 1e20, 1e30):
            found = select_coreset(X * np.float32(scale), 5, metric=metric, method=method)
            assert found.indices.tolist() == want.indices.tolist()
            assert found.weights.tolist() == want.weights.tolist()
            unit = scale if metric == "euclidean" else 1.0
            np.testing.assert_allclose(float(found.objective) / unit, float(want.objective), rtol=1e-5)


@pytest.mark.slow
def test_chunks_come_in_many_forms():
    want = select_coreset_stream(((X[i : i + 20], Y[i : i + 20]) for i in (0, 20, 40)), 6)
    assert want.indices.tolist() == BY_CLASS
    lists = ([X[i : i + 20], Y[i : i + 20]] for i in (0, 20, 40))
    ids = ((X[i : i + 20].tolist(), 10**9 * Y[i : i + 20]) for i in (0, 20, 40))
    wide = ((X[i : i + 20].astype(float) + 1e9, Y[i : i + 20]) for i in (0, 20, 40))
    for chunks in (lists, ids, wide):
        assert select_coreset_stream(chunks, 6).indices.tolist() == BY_CLASS
    assert select_coreset_stream(X, 6, labels=np.array(["b", "c", "x"])[Y]).indices.tolist() == BY_CLASS
    assert select_coreset_stream(Table(X.astype(float)).values, 5).indices.tolist() == WANT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (scipy.sparse.csr_matrix(X), "sparse"),
        ([scipy.sparse.csr_matrix(X)], "in the chunk after 0 rows: .*sparse"),
        ([X, X + 1j], "in the chunk after 60 rows: .*complex"),
        ([(X, Y, Y)], "a tuple of 3 but must be an array"),
        ([(X, Y), X], "without labels, unlike those before"),
        ([(X, Y[:9])], r"labels .* have shape \(9,\)"),
        ([(X, Y.astype(str))], "must be whole numbers"),
        ([X, X[:, :2]], "make the chunks alike"),
        ([X * np.float32(1e-30), X], "float32 cannot hold both"),
        (Factored(X, X), "Factored pair"),
        ({"a": X}, "must be an array"),
        ([], "held 0 examples"),
    ],
)
def test_streams_refuse_in_a_sentence(chunks, message):
    with pytest.raises(ValueError, match=message) as error:
        select_coreset_stream(chunks, 6, part=60)
    assert len(str(error.value)) < 400


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1500, 3000])
def test_a_thousand_classes_are_no_trouble(rows):
    def linear(params, state, inputs, *, train, rng):
        return inputs @ params, state

    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    selection = crest(linear, ArraySource(x, np.arange(rows) % 1000), settings())
    params = jnp.zeros((4, 1000))
    state = selection.init(jax.random.key(0), params, {})
    state, _ = selection.refresh(state, params, {})
    _, batch = selection.next_batch(state)
    np.testing.assert_allclose(float(batch.weights.sum()), 256.0, rtol=1e-5)
    assert len(set(np.asarray(batch.labels).tolist())) == 128, "each pick is of another class"


@pytest.mark.slow
@pytest.mark.parametrize("shift", [100, 300, 1000])
def test_exact_distances_decide_far_from_the_origin(shift):
    # A row at the origin keeps columns from being moved: bounds from a product say nothing then.
    x = (np.random.default_rng(0).normal(size=(800, 10)) + shift).astype(np.float32)
    x[0] = 0
    distances = numpy_distances(x)
    halves = np.arange(800) % 2
    calls = {
        "partitioned": lambda: select_coreset(x, 10, method="partitioned"),
        "stream": lambda: select_coreset_stream(x, 10),
        "orphans": lambda: select_coreset(x, 10, labels=halves, quotas=[10, 0], method="lazy"),
        "lazy": lambda: select_coreset(x, 10, method="lazy"),
        "stochastic": lambda: select_coreset(x, 10, method="stochastic"),
    }
    for name, call in calls.items():
        found = call()
        near = distances[:, np.asarray(found.indices)].argmin(axis=1)
        near[np.asarray(found.indices)] = np.arange(10)
        moved = np.abs(np.bincount(near, minlength=10) - np.asarray(found.weights)).sum() / 2
        assert moved <= 1, name
        if name in ("lazy", "stochastic"):
            cover = distances.max() - distances[:, np.asarray(found.indices)].min(axis=1)
            np.testing.assert_allclose(float(found.objective), cover.sum(), rtol=1e-6)
    # So many draws that every row is among them: the best of all must be picked.
    best = select_coreset(x, 1, method="stochastic", epsilon=1e-3)
    assert int(best.indices[0]) == distances.sum(axis=0).argmin()


def test_a_forked_child_is_told_and_does_not_hang():
    select_coreset(X, 5)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            select_coreset(X, 5)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert b'a fork does not copy; start worker processes with "spawn"' in os.read(read, 1000)


MODES = {
    "jax_enable_x64": True, "jax_debug_nans": True, "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}  # fmt: skip


MESH = jax.make_mesh((1,), ("data",))
CALLS = {
    "dense": lambda: select_coreset(X, 9, labels=Y, metric="cosine", method="dense"),
    "lazy": lambda: select_coreset(X.astype(float), 9, labels=Y, metric="exponential", method="lazy"),
    "stochastic": lambda: select_coreset(X, 5, metric="sqeuclidean", method="stochastic"),
    "given": lambda: select_coreset(np.exp(-numpy_distances(X)), 6, labels=Y, metric="precomputed"),
    "factored": lambda: select_coreset(Factored(X[:, :2], X[:, 1:]), 5, method="lazy"),
    "orphans": lambda: select_coreset(X, 6, labels=Y, quotas=[6, 0, 0]),
    "few": lambda: select_coreset(X, 2, labels=Y),
    "jit": lambda: jax.jit(lambda x: select_coreset(x, 6, labels=jnp.asarray(Y), num_classes=3))(X),
    "stream": lambda: select_coreset_stream(X, 6, labels=Y, part=40),
    "sharded": lambda: select_coreset_sharded(X, 6, mesh=MESH, labels=Y),
    "medoids": lambda: medoids(
        jnp.asarray(X), jnp.asarray(Y, jnp.int32), size=2, num_classes=3, key=jax.random.key(0)
    ),
}
QUICK = {  # the others in these modes are slow
    "jax_enable_x64": {"dense", "lazy", "jit", "medoids"},
    "jax_numpy_dtype_promotion": {"dense", "medoids"},
    "jax_debug_nans": {"dense"},
    "jax_numpy_rank_promotion": {"dense"},
}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(mode, name, marks=[] if name in quick else pytest.mark.slow)
        for mode, quick in QUICK.items()
        for name in CALLS
    ],
)
def test_selection_works_in_the_modes_of_jax(mode, name):
    want, before = CALLS[name](), getattr(jax.config, mode)
    try:
        jax.config.update(mode, MODES[mode])
        found = CALLS[name]()
    finally:
        jax.config.update(mode, before)
    assert found.indices.tolist() == want.indices.tolist()
    kinds = ["int32", "float32", "float32", "float32", "int32", "float32"]
    for leaf, kind in zip(found, kinds, strict=True):
        assert leaf is None or str(leaf.dtype) == kind
    assert (found.assignments is None) == (name in ("stream", "sharded"))
