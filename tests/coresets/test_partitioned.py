"""Selection in parts and from streams."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from crest_jax import select_coreset, select_coreset_stream
from crest_jax.coresets import partitioned
from crest_jax.coresets.plan import part_rows

ROWS, SIZE = 5_000, 40
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(60, 5)) * 3
POOL = np.float32(CENTRES[RNG.integers(0, 60, ROWS)] + RNG.normal(size=(ROWS, 5)) * 0.3)
LABELS = RNG.integers(0, 3, ROWS)


def mean_distance(picks, pool=POOL):
    return cdist(pool, pool[np.asarray(picks)]).min(axis=1).mean()


def check(coreset, count=ROWS, size=SIZE):
    picks = np.asarray(coreset.indices)
    assert len(set(picks.tolist())) == size == len(picks)
    assert picks.min() >= 0
    assert picks.max() < count
    assert float(coreset.weights.sum()) == count
    assert float(coreset.weights.min()) >= 1


@pytest.mark.slow
def test_parts_come_close_to_the_exact_choice(monkeypatch):
    monkeypatch.setattr("crest_jax.coresets.plan.part_rows", lambda size: 640)
    found = select_coreset(POOL, SIZE, method="partitioned")
    check(found)
    exact = select_coreset(POOL, SIZE, method="lazy")
    random = [mean_distance(np.random.default_rng(s).permutation(ROWS)[:SIZE]) for s in range(5)]
    assert mean_distance(found.indices) < 0.9 * min(random)
    assert mean_distance(found.indices) < 1.1 * mean_distance(exact.indices)
    assert (1 - 1 / np.e) / 2 * float(exact.objective) <= float(found.objective)
    values = cdist(POOL, POOL[np.asarray(found.indices)])
    expected = np.bincount(values.argmin(axis=1), minlength=SIZE)
    assert found.weights.tolist() == expected.tolist()
    # gains are estimates from a sample
    np.testing.assert_allclose(float(found.gains.sum()), float(found.objective), rtol=0.1)


@pytest.mark.slow
def test_parts_keep_the_quotas_of_the_classes(monkeypatch):
    monkeypatch.setattr("crest_jax.coresets.plan.part_rows", lambda size: 640)
    found = select_coreset(POOL, SIZE, labels=LABELS, method="partitioned")
    check(found)
    own = LABELS[np.asarray(found.indices)]
    exact = select_coreset(POOL, SIZE, labels=LABELS, method="lazy")
    assert np.bincount(own).tolist() == np.bincount(LABELS[np.asarray(exact.indices)]).tolist()
    totals = np.bincount(own, weights=np.asarray(found.weights))
    assert totals.tolist() == np.bincount(LABELS).tolist()
    other = select_coreset(POOL, SIZE, labels=LABELS, method="partitioned", key=jax.random.key(1))
    assert other.indices.tolist() != found.indices.tolist()


@pytest.mark.slow
def test_one_part_is_the_exact_choice():
    found = select_coreset(POOL[:600], SIZE, method="partitioned")
    exact = select_coreset(POOL[:600], SIZE, method="lazy")
    assert set(found.indices.tolist()) == set(exact.indices.tolist())


@pytest.mark.slow
def test_a_mapped_file_and_its_chunks_give_the_same_picks(tmp_path):
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=POOL.shape)
    mapped[:] = POOL
    seen = []
    found = select_coreset_stream(mapped, SIZE, part=1_000, progress=seen.append)
    check(found)
    assert seen == [*range(1_000, 6_000, 1_000)] * 2
    chunks = (POOL[first : first + 77] for first in range(0, ROWS, 77))
    once = select_coreset_stream(chunks, SIZE, part=1_000)
    check(once)
    assert once.indices.tolist() == found.indices.tolist()
    values = cdist(POOL, POOL[np.asarray(found.indices)])
    assert found.weights.tolist() == np.bincount(values.argmin(axis=1), minlength=SIZE).tolist()
    # Read once, weights come from the parts: nearly the same.
    assert np.abs(np.asarray(once.weights) - np.asarray(found.weights)).sum() < 0.3 * ROWS
    np.testing.assert_allclose(float(once.objective), float(found.objective), rtol=0.05)
    assert mean_distance(found.indices) < 1.15 * mean_distance(select_coreset(POOL, SIZE).indices)


@pytest.mark.slow
def test_streams_with_labels_keep_classes_apart():
    array = select_coreset_stream(POOL, SIZE, labels=LABELS, num_classes=3, part=900)
    check(array)
    own = LABELS[np.asarray(array.indices)]
    shares = SIZE * np.bincount(LABELS) / ROWS
    assert (np.abs(np.bincount(own) - shares) < 1).all()
    totals = np.bincount(own, weights=np.asarray(array.weights))
    assert totals.tolist() == np.bincount(LABELS).tolist()
    pairs = ((POOL[a : a + 500], LABELS[a : a + 500]) for a in range(0, ROWS, 500))
    stream = select_coreset_stream(pairs, SIZE, num_classes=3, part=900)
    assert stream.indices.tolist() == array.indices.tolist()
    few = select_coreset_stream(POOL, 5, labels=LABELS, num_classes=3, part=900)
    check(few, size=5)  # fewer than two picks a class: covered as a whole


def test_a_last_part_smaller_than_the_size_is_kept_whole():
    found = select_coreset_stream(POOL[:1_010], SIZE, part=1_000)
    check(found, count=1_010)
    alone = select_coreset_stream(POOL[:30], 30, part=100)
    assert sorted(alone.indices.tolist()) == list(range(30))
    assert alone.weights.tolist() == [1.0] * 30


@pytest.mark.parametrize(
    ("chunks", "options", "message"),
    [
        (POOL, {"size": 0}, "size is 0 but must be an integer of at least 1; pass"),
        (POOL[:9], {"size": 10}, "size is 10 but the stream held 9 examples.*; ask for at most 9"),
        (POOL, {"size": 10, "part": 9}, "part is 9 but must be at least size, which is 10; raise"),
        (POOL, {"size": 10, "metric": "precomputed"}, "metric is 'precomputed' but must be.*; choose"),
        (POOL, {"size": 10, "labels": LABELS[:4]}, r"labels have shape \(4,\).*; pass"),
        ([POOL], {"size": 10, "labels": LABELS}, "labels are given beside an iterable.*; let"),
        ([POOL, POOL[:, :2]], {"size": 10}, r"chunk after 5000 rows has shape \(5000, 2\).*; make"),
        ([POOL[:5], np.full((5, 5), np.nan)], {"size": 3}, "in the chunk after 5 rows: .*NaN.*; check"),
        ([(POOL[:5], LABELS[:5] + 9)], {"size": 3, "num_classes": 3}, "labels span 9 to .*; renumber"),
    ],
)
def test_bad_streams_raise_a_sentence(chunks, options, message):
    size = options.pop("size")
    with pytest.raises(ValueError, match=message):
        select_coreset_stream(chunks, size, **options)


def test_parts_are_large_enough_to_choose_from():
    for size in (1, 1_000, 10_000, 100_000):
        assert part_rows(size) >= 2 * size
        assert part_rows(size) >= 8_192


def test_a_stream_of_more_classes_than_picks_gives_no_row_twice():
    rows = 1000.0 * np.arange(12)[:, None] + 10.0 * np.arange(10)[None]
    rows[0] = rows[1] = 0
    rows = np.concatenate([rows[1], rows[0], rows[2:6].ravel(), rows[6:].ravel()])[:, None]
    labels = np.concatenate([[1] * 10, [0] * 10, np.repeat(np.arange(2, 12), 10)])
    found = select_coreset_stream(np.float32(rows), 10, labels=labels, part=60)
    assert len(set(found.indices.tolist())) == 10
    assert float(found.gains.min()) >= 0
    assert float(found.weights.sum()) == pytest.approx(120)


def test_a_rare_class_leaves_the_parts_as_they_are_planned(monkeypatch):
    monkeypatch.setattr("crest_jax.coresets.plan.part_rows", lambda size: 640)
    chosen_in, choose = [], partitioned.choose_in_part

    def noted(points, labels, *args, **options):
        chosen_in.append(len(labels))
        return choose(points, labels, *args, **options)

    monkeypatch.setattr(partitioned, "choose_in_part", noted)
    labels = np.zeros(ROWS, int)
    labels[[7, 4000]] = 1, 2
    found = select_coreset(POOL, SIZE, labels=labels, method="partitioned")
    check(found)
    assert len(chosen_in) == 9
    assert max(chosen_in[:-1]) <= 640
    assert {7, 4000} <= set(found.indices.tolist()), "a class of one row has one pick"
    weights = dict(zip(found.indices.tolist(), found.weights.tolist(), strict=True))
    assert weights[7] == weights[4000] == 1
