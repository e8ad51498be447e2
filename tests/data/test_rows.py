"""Rows: quotas, pools, streams, chunks and array sources against counting by hand."""

from collections import Counter
from fractions import Fraction
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax import ArraySource, HostSource
from crest_jax.baselines import top_loss_batches
from crest_jax.data import make_strata, next_subset, open_stream
from crest_jax.data.exclusion import importance_weights
from crest_jax.data.permutation import scramble, unscramble
from crest_jax.data.quotas import quota_edges
from crest_jax.data.sampler import all_in_play, rearranged
from crest_jax.data.sources import padded_chunks

COUNT = st.one_of(st.just(0), st.just(1), st.integers(0, 60))
COUNTS = st.lists(COUNT, min_size=6, max_size=6).filter(any)


def quotas_by(key, counts, size, most):
    running = jnp.cumsum(counts, dtype=jnp.int32)
    bits = jax.random.bits(key, (), jnp.uint32)
    firsts, ends = quota_edges(bits, running - counts, running, size, most=most)
    return ends - firsts


def check_quotas(quotas, counts, size):
    total = sum(counts)
    assert sum(quotas) == size
    for quota, count in zip(quotas, counts, strict=True):
        expected = Fraction(size * count, total)
        assert 0 <= quota <= count
        if expected.denominator == 1:
            assert quota == expected
        else:
            assert abs(quota - expected) < 1


@settings(deadline=None, max_examples=60)
@given(counts=COUNTS, data=st.data())
def test_quotas_split_the_size_within_one_of_the_proportion(counts, data):
    total = sum(counts)
    size = data.draw(st.one_of(st.just(total), st.integers(1, total)))
    key = jax.random.key(data.draw(st.integers(0, 1000)))
    quotas = quotas_by(key, jnp.array(counts), size, most=360)
    check_quotas(quotas.tolist(), counts, size)


@settings(deadline=None, max_examples=30)
@given(shares=st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any), data=st.data())
def test_quotas_of_large_data_whose_products_pass_31_bits(shares, data):
    counts = [share * (2**31 // 8000) for share in shares]
    size = data.draw(st.integers(8001, 20_000))
    key = jax.random.key(data.draw(st.integers(0, 1000)))
    quotas = quotas_by(key, jnp.array(counts), size, most=2**31 - 1).tolist()
    check_quotas(quotas, counts, size)


@pytest.mark.parametrize("size", [1, 512, 2**20])
def test_quotas_of_large_data_are_exact(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        total = int(rng.integers(2**24, 2**31))
        ends = np.unique([*rng.integers(1, total, 6), total // 2, total // 2 + 1, total])
        bits = int(rng.integers(2**32))
        offset = bits * total >> 32
        expected = [(size * int(end) + offset) // total for end in [0, *ends]]
        before, running = (jnp.asarray(x, jnp.int32) for x in ([0, *ends[:-1]], ends))
        found = quota_edges(jnp.uint32(bits), before, running, size, most=2**31 - 1)
        assert found[0].tolist() == expected[:-1]
        assert found[1].tolist() == expected[1:]


# Where products pass 31 bits float32 alone would make a running sum one row too high, too low (third
# class of the second case), or 1.004 above the one before it at a class of one row (third case).
@pytest.mark.parametrize(
    "counts",
    [
        [7919, 1, 0, 9973, 12347, 1, 16111],
        [8772, 8652, 8658, 8604, 8604, 8710, 0],
        [12369, 1, 12217, 1, 12220, 1, 12194],
    ],
)
@pytest.mark.parametrize("short", [0, 2])
def test_quotas_of_almost_all_rows_are_all_rows_of_a_class_at_most(counts, short):
    size = sum(counts) - short
    assert (size + 1) * sum(counts) >= 2**31, "products must pass 31 bits"
    quotas_of = jax.jit(jax.vmap(lambda key: quotas_by(key, jnp.array(counts), size, most=sum(counts))))
    quotas = np.asarray(quotas_of(jax.random.split(jax.random.key(0), 5000)))
    assert (quotas.sum(axis=1) == size).all()
    assert (quotas >= 0).all()
    assert (quotas <= np.array(counts)[None, :]).all()
    if short == 0:
        assert (quotas == np.array(counts)[None, :]).all()


@pytest.mark.parametrize("most", [23, 2**31 - 1], ids=["short", "long"])
def test_quotas_are_unbiased(most):
    counts, size, keys = np.array([7, 2, 0, 1, 13]), 6, 4000
    quotas_of = jax.jit(jax.vmap(lambda key: quotas_by(key, jnp.asarray(counts), size, most=most)))
    mean = np.asarray(quotas_of(jax.random.split(jax.random.key(1), keys))).mean(axis=0)
    expected = size * counts / counts.sum()
    part = expected % 1
    # Each quota is one of two neighbours of its expectation: the variance is p (1 - p).
    bound = 5 * np.sqrt(part * (1 - part) / keys) + 1e-9
    assert (np.abs(mean - expected) <= bound).all()
    assert bound.max() < 0.05


rearranged_compiled = jax.jit(rearranged, static_argnames="keep")


def away(strata, active, keep=0.0, seed=0):
    stream = open_stream(jax.random.key(seed), len(strata.sizes))
    return rearranged_compiled(stream, strata, all_in_play(strata), jnp.asarray(~active), keep=keep)[1]


def walk(stream, strata, batches, size, in_play=None):
    drawn = []
    for _ in range(batches):
        stream, rows = next_subset(stream, strata, size, in_play)
        drawn.append(rows.tolist())
    return drawn


scrambled = jax.jit(scramble)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 100, 1021])
def test_a_scrambled_order_is_a_permutation_and_differs_by_its_seed(size):
    orders = []
    for seed in range(3):
        places, sizes = jnp.arange(size), jnp.full(size, size)
        found = scrambled(places, sizes, jnp.full(size, seed, jnp.uint32)).tolist()
        assert sorted(found) == list(range(size))
        orders.append(found)
    assert size < 13 or len({tuple(order) for order in orders}) == 3


@pytest.mark.slow
def test_scrambling_holds_for_the_largest_ranges():
    sizes = jnp.array([2**31 - 1, 2**31 - 1, 10**9, 46340**2, 46340**2 + 1])
    for seed in range(20):
        places = jnp.array([0, 2**31 - 2, 10**9 - 1, 46340**2 - 1, 46340**2])
        found = scrambled(places, sizes, jnp.full(5, seed, jnp.uint32))
        assert (found >= 0).all()
        assert (found < sizes).all()
        assert found[0] != found[1]


def test_every_order_of_few_rows_is_about_equally_likely():
    seeds = jnp.repeat(jnp.arange(24_000, dtype=jnp.uint32), 4)
    places, sizes = jnp.tile(jnp.arange(4), 24_000), jnp.full(96_000, 4)
    found = np.asarray(scramble(places, sizes, seeds)).reshape(-1, 4)
    counts = Counter(map(tuple, found.tolist()))
    assert len(counts) == 24
    assert all(abs(count - 1000) < 200 for count in counts.values()), counts


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 101])
def test_each_place_goes_everywhere_and_neighbours_part(size):
    """Chi-square of where a place goes, and of the difference of two neighbours' places."""
    trials = 400 * size
    seeds = jnp.arange(trials, dtype=jnp.uint32) * jnp.uint32(2654435761)
    sizes = jnp.full(trials, size)
    first = np.asarray(scramble(jnp.full(trials, 3), sizes, seeds))
    second = np.asarray(scramble(jnp.full(trials, 4), sizes, seeds))
    gaps = (second - first) % size
    for values, cells in ((first, size), (gaps - 1, size - 1)):
        expected = trials / cells
        square = ((np.bincount(values, minlength=cells) - expected) ** 2 / expected).sum()
        assert abs(square - (cells - 1)) < 5 * np.sqrt(2 * (cells - 1)), square


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1.0))
def test_subsets_hold_rows_in_play_once_in_proportion_to_the_classes(seed, share):
    rng = np.random.default_rng(seed)
    classes = rng.choice(5, 40, p=[0.5, 0.3, 0.15, 0.05, 0.0])
    active = rng.random(40) < share
    active[rng.permutation(40)[:7]] = True
    in_play = np.bincount(classes[active], minlength=5)
    strata = make_strata(classes, 5)
    some = away(strata, active)
    assert some.sizes.tolist() == in_play.tolist()
    stream = open_stream(jax.random.key(seed), 5)
    times = Counter()
    for _ in range(11):
        passes = stream.passes
        stream, rows = next_subset(stream, strata, 7, some)
        rows = np.asarray(rows)
        assert len(set(rows.tolist())) == 7
        assert active[rows].all()
        assert (np.diff(classes[rows]) >= 0).all(), "a subset is grouped by class"
        drawn = np.bincount(classes[rows], minlength=5)
        check_quotas(drawn.tolist(), in_play.tolist(), 7)
        # A class comes to every row in play before it comes to one again.
        times.update(rows.tolist())
        for c in range(5):
            own = np.flatnonzero(active & (classes == c)).tolist()
            if stream.passes[c] > passes[c]:
                assert all(times[row] for row in own)
                assert sum(times[row] > 1 for row in own) <= drawn[c]
                for row in own:
                    del times[row]
            else:
                assert all(times[row] <= 1 for row in own)


def test_every_row_in_play_is_equally_likely():
    classes = np.array([0, 0, 0, 1, 1, 2, 1, 1, 0])
    active = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)
    strata, keys = make_strata(classes, 3), 3000
    some = away(strata, active)
    draw = jax.jit(jax.vmap(lambda key: next_subset(open_stream(key, 3), strata, 3, some)[1]))
    rows = np.asarray(draw(jax.random.split(jax.random.key(2), keys)))
    share = np.bincount(rows.ravel(), minlength=9) / keys
    expected = np.where(active, 3 / active.sum(), 0.0)
    bound = 5 * np.sqrt(expected * (1 - expected) / keys)
    assert (np.abs(share - expected) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.25, 0.7])
def test_rows_out_of_play_are_kept_at_their_rate_and_stand_for_the_others(keep):
    rng = np.random.default_rng(7)
    learned, classes = rng.random(400) < 0.6, np.zeros(400, int)
    strata = make_strata(classes, 1)
    values, totals, kept = rng.normal(size=400), [], []
    for seed in range(300):
        stream, rows = open_stream(jax.random.key(seed), 1), []
        some = away(strata, ~learned, keep, seed)
        while not stream.passes[0]:
            stream, drawn = next_subset(stream, strata, 5, some)
            rows.append(np.asarray(drawn))
        rows = np.unique(np.concatenate(rows))
        assert np.isin(np.flatnonzero(~learned), rows).all()
        left_at = jnp.asarray(learned, jnp.int8)
        weights = np.asarray(importance_weights(left_at, jnp.asarray(rows), keep))
        totals.append((weights * values[rows]).sum())
        kept.append(learned[rows].sum() / learned.sum())
    assert abs(np.mean(kept) - keep) < 5 * np.sqrt(keep * (1 - keep) / learned.sum() / 300)
    variance = (values[learned] ** 2).sum() * (1 - keep) / keep
    assert abs(np.mean(totals) - values.sum()) <= 5 * np.sqrt(variance / 300), "biased"
    assert np.std(totals) == pytest.approx(np.sqrt(variance), rel=0.2)
    assert len({round(total, 6) for total in totals}) == 300, "others are kept every time"


@pytest.mark.parametrize("class_sizes", [(24,), (12, 8, 4)], ids=["plain", "stratified"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_gives_every_row_once_per_pass_and_a_new_order_each_pass(class_sizes, whole):
    classes = np.repeat(np.arange(len(class_sizes)), class_sizes)[::-1].copy()
    strata = make_strata(classes, len(class_sizes))
    # With nothing out of play the rows in play give the very same.
    out = None if whole else away(strata, np.ones(24, bool))
    stream = open_stream(jax.random.key(3), len(class_sizes))
    drawn = walk(stream, strata, 12, 6, out)
    assert drawn == walk(stream, strata, 12, 6)
    passes = [drawn[0:4], drawn[4:8], drawn[8:12]]
    for one in passes:
        assert sorted(chain(*one)) == list(range(24))
    assert passes[0] != passes[1]
    assert passes[1] != passes[2]
    assert walk(open_stream(jax.random.key(4), len(class_sizes)), strata, 12, 6) != drawn


def test_a_stream_whose_size_does_not_divide_the_rows_leaves_none_out():
    strata = make_strata(np.zeros(24, int), 1)
    drawn = walk(open_stream(jax.random.key(5), 1), strata, 10, 5)  # a pass is 5 draws, wraps by 1
    for one in (drawn[:5], drawn[5:]):
        times = Counter(chain(*one))
        assert set(times) == set(range(24))
        assert sorted(times.values()) == [1] * 23 + [2]
    assert drawn[:5] != drawn[5:]


def test_a_stream_never_gives_rows_out_of_play_across_passes():
    rng = np.random.default_rng(6)
    classes, active = rng.integers(0, 3, 30), rng.random(30) < 0.5
    strata, stream = make_strata(classes, 3), open_stream(jax.random.key(6), 3)
    drawn = walk(stream, strata, 20, 4, away(strata, active))
    assert set(chain(*drawn)) == set(np.flatnonzero(active).tolist())


@pytest.mark.parametrize("sizes", [(40,), (17, 8, 15)])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_a_pass_goes_on_where_rows_leave_and_return(sizes, share):
    """No row comes twice in a pass; those in play throughout, and those not gone by, do come."""
    rng = np.random.default_rng(len(sizes))
    classes = np.repeat(np.arange(len(sizes)), sizes)[rng.permutation(40)]
    strata = make_strata(classes, len(sizes))
    stream, some = open_stream(jax.random.key(1), len(sizes)), all_in_play(strata)
    came, always = np.zeros(40, int), np.ones(40, bool)  # in this pass of its class
    for _ in range(40):
        active = rng.random(40) < share
        active[rng.permutation(40)[:20]] = True
        before = stream.passes
        stream, some = rearranged_compiled(stream, strata, some, jnp.asarray(~active), keep=0.0)
        always &= active
        held = [np.flatnonzero(active & (classes == c)) for c in range(len(sizes))]
        assert some.sizes.tolist() == [len(rows) for rows in held]
        assert sorted(some.order.tolist()) == list(range(40))
        for c in np.flatnonzero(np.asarray(stream.passes) > before):  # nothing in play was left
            assert (came[always & (classes == c)] > 0).all()
            came[classes == c], always[classes == c] = 0, active[classes == c]
        for _ in range(int(rng.integers(0, 4))):
            before = np.asarray(stream.passes)
            stream, rows = next_subset(stream, strata, 5, some)
            rows = np.asarray(rows)
            assert len(set(rows.tolist())) == 5
            assert active[rows].all()
            came[rows] += 1
            for c, own in enumerate(held):
                if stream.passes[c] > before[c]:
                    assert (came[always & (classes == c)] > 0).all()
                    assert (came[own] <= 2).all()  # of the draw that fills itself
                    came[classes == c], always[classes == c] = 0, active[classes == c]
                else:
                    assert (came[own] <= 1).all()
    assert min(stream.passes) > 3


@pytest.mark.parametrize("keep", [0.25, 0.7])
def test_rows_too_few_for_the_share_are_kept_at_it_all_the_same(keep):
    classes = np.repeat(np.arange(50), 10)
    strata, every = make_strata(classes, 50), all_in_play(make_strata(classes, 50))
    out = np.arange(500) % 10 < 1 + np.arange(500) // 10 % 2  # one or two of each class
    stream, kept = open_stream(jax.random.key(0), 50), np.zeros(500)
    for _ in range(200):
        stream, some = rearranged_compiled(stream, strata, every, jnp.asarray(out), keep=keep)
        for start, size in zip(np.asarray(strata.starts), np.asarray(some.sizes), strict=True):
            kept[np.asarray(some.order)[start : start + size]] += 1
    assert (kept[~out] == 200).all()
    assert (np.abs(kept[out] / 200 - keep) < 5 * np.sqrt(keep * (1 - keep) / 200)).all()


def test_where_a_place_went_is_found_again():
    sizes, seeds = jnp.array([1, 7, 100, 1021]), jnp.array([3, 9, 4, 1], jnp.uint32)
    groups = jnp.repeat(jnp.arange(4), sizes, total_repeat_length=1129)
    places = jnp.arange(1129) - (jnp.cumsum(sizes) - sizes)[groups]
    found = scramble(places, sizes[groups], seeds[groups])
    assert unscramble(found, groups, sizes, seeds).tolist() == places.tolist()


def test_strata_of_some_rows_hold_these_only():
    labels = np.array([2, 0, 1, 0, 2, 2])
    strata = make_strata(labels, 3, np.array([5, 3, 0]))
    assert strata.members.tolist() == [3, 5, 0]
    assert strata.sizes.tolist() == [1, 0, 2]
    drawn = walk(open_stream(jax.random.key(0), 3), strata, 4, 2)
    assert set(chain(*drawn)) == {0, 3, 5}


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
def test_chunks_cover_each_position_once_under_the_mask(chunk):
    for count in range(14):
        chunks = list(padded_chunks(count, chunk))
        assert len(chunks) == -(-count // chunk)
        covered = [int(p) for positions, mask in chunks for p in positions[mask]]
        assert covered == list(range(count))
        for positions, mask in chunks:
            assert positions.shape == mask.shape == (chunk,)
            assert positions.dtype == np.int32
            assert ((positions >= 0) & (positions < count)).all(), "padding must be a valid position"


def test_a_source_takes_rows_in_order_and_keeps_the_type():
    inputs = np.random.default_rng(0).integers(0, 255, (9, 2, 3)).astype(np.uint8)
    labels = np.array([0, 3, 1, 1, 0, 3, 0, 1, 0])
    source = ArraySource(inputs, labels)
    rows = [8, 0, 5, 5, 1]
    examples = source.take(jnp.array(rows))
    assert len(source) == 9
    assert source.classes.tolist() == labels.tolist()
    assert examples.inputs.dtype == jnp.uint8
    assert (np.asarray(examples.inputs) == inputs[rows]).all()
    assert examples.labels.tolist() == labels[rows].tolist()


class Table:
    """What of a data frame NumPy and a source look at; its brackets pick columns."""

    def __init__(self, values):
        self.values, self.shape, self.iloc = values, values.shape, None

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __getitem__(self, columns):
        return Table(self.values[:, columns])


ROWS = np.random.default_rng(0).normal(size=(6, 4))
TARGETS = np.arange(6) % 3


@pytest.mark.parametrize("kind", [ArraySource, HostSource])
@pytest.mark.parametrize(
    "inputs",
    [
        ROWS.tolist(),
        [row.reshape(2, 2) for row in ROWS],
        Table(ROWS),
        ROWS.astype(">f4"),
        ROWS.astype(np.longdouble),
        ROWS + 1j,
        ROWS > 0,
        np.arange(6) - 2**31,
        np.arange(6, dtype=np.uint64) + 2**31,
        np.where(ROWS > 1, np.inf, ROWS),
        np.ma.array(ROWS),
        jnp.asarray(ROWS, jnp.bfloat16),
    ],
    ids=["list", "images", "table", "big-endian", "longdouble", "complex", "bool", "int64", "uint64",
         "infinite", "no mask", "bfloat16"],
)  # fmt: skip
def test_a_source_takes_numbers_of_every_usual_form(kind, inputs):
    expected = np.asarray(inputs)
    expected = np.float64(expected.astype(np.float32)) if expected.dtype.kind == "f" else expected
    found = np.asarray(kind(inputs, TARGETS).take(jnp.array([4, 1])).inputs)
    if expected.dtype.kind == "c":
        expected = expected.astype(np.complex64)
    assert (found == expected[[4, 1]]).all()
    assert found.size > 0


@pytest.mark.parametrize("kind", [ArraySource, HostSource])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (scipy.sparse.csr_matrix(ROWS), r"sparse matrix \(csr_matrix\) .*; pass .toarray"),
        (np.ma.masked_less(ROWS, 0), "masked entries but .*; fill"),
        (ROWS.astype(object), "dtype object but must be numbers; encode"),
        (np.array(list("abcdef")), "dtype <U1 but must be numbers"),
        (np.arange(6).astype("datetime64[s]"), "dtype datetime64.* but must be numbers"),
        (np.arange(6).astype("timedelta64[s]"), "dtype timedelta64.* but must be numbers"),
        (np.arange(6) * 2**40, "span 0 to .*, beyond int32.*; scale or number"),
        (np.arange(6, dtype=np.uint64) + 2**40, "beyond uint32"),
        (ROWS * 1e300, "beyond float32"),
        ([[1, 2], [3]] * 3, "must make one array of numbers .*; give every example the same shape"),
        ([[1.0] * 900, [2.0]] * 3, "must make one array of numbers"),
        (None, r"; (encode|pass)"),
    ],
)
def test_a_source_refuses_what_is_no_array_of_numbers(kind, inputs, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind(inputs, TARGETS).take(jnp.arange(6))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [ArraySource, HostSource])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(list("abcabc")), r"dtype <U1 but .*; number classes with np.unique"),
        (np.array(list("abcabc"), object), "dtype object but .*; number"),
        (TARGETS * 2**33, r"span 0 to 1.7.*e\+10, beyond int32.*; scale or number them anew"),
        (np.ma.array(TARGETS, mask=TARGETS == 1), "masked entries but .*; fill"),
        (TARGETS.astype("timedelta64[s]"), "dtype timedelta64.s. but .*; encode"),
    ],
)
def test_a_source_refuses_labels_that_are_no_numbers(kind, labels, message):
    with pytest.raises(ValueError, match=f"^labels .*{message}"):
        kind(ROWS, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(3)[TARGETS], r"labels have shape \(6, 3\) for .*argmax"),
        (TARGETS > 0, "labels have dtype bool but .*; cast"),
        (TARGETS * 2.0, "labels have dtype float32 but .*; cast"),
        (TARGETS - 1, "the lowest label is -1 but .*; renumber"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused_by_the_loss_of_classes(labels, message):
    def linear(params, model_state, inputs, *, train, rng):
        return inputs @ params, model_state

    source = ArraySource(np.ones((6, 2), np.float32), labels)
    selector = top_loss_batches(linear, source, 2, 6)
    params = jnp.zeros((2, 3))
    state = selector.init(jax.random.key(0), params, {})
    with pytest.raises(ValueError, match=message):
        selector.refresh(state, params, {})


@pytest.mark.parametrize("kind", [ArraySource, HostSource])
@pytest.mark.parametrize("rows", [[0, 6], np.array([-1]), np.array([0.5])])
def test_a_source_refuses_rows_on_the_host_that_it_has_not(kind, rows):
    with pytest.raises(ValueError, match=r"rows (span|have dtype) .* but must .*; pass positions"):
        kind(ROWS, TARGETS).take(rows)


def test_strata_are_of_classes_that_are_counted():
    with pytest.raises(ValueError, match=r"labels span 0 to 300 but must lie in \[0, 3\)"):
        make_strata(np.array([0, 300, 1]), 3)


@pytest.mark.parametrize("most", [40, 2**31 - 1], ids=["short", "long"])
def test_quotas_are_the_same_in_64_bits(most):
    counts, keys = jnp.array([17, 12, 11], jnp.int32), jax.random.split(jax.random.key(0), 50)
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            quotas = [quotas_by(key, counts, 7, most=most) for key in keys]
            assert {x.dtype for x in quotas} == {np.dtype("int32")}
            found.append([x.tolist() for x in quotas])
    assert found[0] == found[1]
    assert len({tuple(x) for x in found[0]}) > 1
