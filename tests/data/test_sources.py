"""Sources of any arrays: inputs and labels of every kind, their classes, records of other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import ArraySource, Examples, HostSource, from_frame, from_records, stratified_batches

THREE = np.zeros((3, 2))
BAD_DATA = {
    "empty": ((np.zeros((0, 2)), np.zeros(0, int)), {}, r"inputs have shape \(0, 2\).*pass data"),
    "scalar": ((np.float32(1), np.zeros(1, int)), {}, r"inputs (have|are) .*must .*pass"),
    "no arrays": (({}, [0]), {}, r"inputs are \{\} but a dictionary of arrays needs at least one"),
    "names that are numbers": (({0: THREE}, [0, 1, 0]), {}, r"a dictionary of arrays needs.*name"),
    "unequal parts": (({"x": THREE, "y": THREE[:2]},), {}, r"inputs hold 2 and 3 examples"),
    "text in a part": (({"x": ["a", "b"]},), {}, r"inputs\['x'\] have dtype <U1 but must be numbers"),
    "too few labels": ((THREE, np.zeros(2, int)), {}, r"labels have shape \(2,\).*\(3, ...\).*pass"),
    "too few in a part": (
        (THREE, {"mask": np.zeros((2, 4))}), {}, r"labels\['mask'\] have shape \(2, 4\).*\(3, ...\)",
    ),
    "ragged labels": ((THREE, [[0], [1, 2], [0]]), {}, r"labels are .* but must make one array"),
    "no number": ((THREE, ["a", "b", "a"]), {}, r"labels have dtype <U1.*np.unique"),
    "beyond 32 bits": ((THREE, np.array([0, 1, 2**32 - 1], np.uint32)), {}, r"labels reach 4294967295"),
    "too few classes": ((THREE,), {"classes": [0, 1]}, r"classes have shape \(2,\).*\(3,\).*pass"),
    "floats as classes": ((THREE,), {"classes": [0.5, 1, 0]}, r"classes have dtype float64.*cast"),
    "unknown word": ((THREE,), {"classes": "label"}, r"classes are 'label' but must be one class"),
    "ragged classes": ((THREE,), {"classes": [[0], [1, 2], 0]}, r"classes have shape of different"),
    "masked classes": (
        (THREE,), {"classes": np.ma.masked_equal([0, 1, 2], 1)}, r"classes have masked entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "options", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
@pytest.mark.parametrize("kind", [ArraySource, HostSource])
def test_a_source_refuses_bad_data_in_a_sentence(kind, data, options, message):
    with pytest.raises(ValueError, match=message):
        kind(*data, **options)


LABELS_OF_ALL_KINDS = {
    "none": (None, None),
    "classes": (np.array([3, 0, 3, 1]), [3, 0, 3, 1]),
    "below 0": (np.array([-1, 0, 1, -1], np.int8), [-1, 0, 1, -1]),
    "numbers": (np.array([0.5, 1.0, 2.0, 0.0]), None),
    "several numbers": (np.ones((4, 3), np.float32), None),
    "tokens": (np.arange(8).reshape(4, 2), None),
    "masks": (np.ones((4, 2, 2), np.uint8), None),
    "two kinds": ({"box": np.ones((4, 4)), "kind": np.arange(4)}, None),
}
INPUTS_OF_ALL_KINDS = {
    "array": np.arange(12.0).reshape(4, 3),
    "dictionary": {"ids": np.arange(8).reshape(4, 2), "mask": np.ones((4, 2), bool)},
    "tuple": (np.arange(4.0), {"deep": np.arange(4)}),
}


@pytest.mark.parametrize("labels", LABELS_OF_ALL_KINDS)
@pytest.mark.parametrize("inputs", INPUTS_OF_ALL_KINDS)
@pytest.mark.parametrize("kind", [ArraySource, HostSource])
def test_a_source_takes_any_arrays_and_stratifies_by_whole_numbers_only(kind, inputs, labels):
    values, (given, classes) = INPUTS_OF_ALL_KINDS[inputs], LABELS_OF_ALL_KINDS[labels]
    source = kind(values, given)
    found = source.take(jnp.array([2, 0]))
    assert jax.tree.structure(found) == jax.tree.structure(Examples(values, given))
    for leaf, own in zip(jax.tree.leaves(found), jax.tree.leaves((values, given)), strict=True):
        assert leaf.tolist() == own[[2, 0]].tolist()
    assert len(source) == 4
    assert classes is source.classes is None or source.classes.tolist() == classes
    assert kind(values, given, classes=None).classes is None
    named = kind(values, given, classes=["b", "a", "b", "b"]).classes
    assert named.tolist() == ["b", "a", "b", "b"]


def test_draws_are_stratified_by_the_classes_given_and_by_nothing_else():
    inputs, groups = np.arange(40.0)[:, None], np.arange(40) % 4
    for classes, even in ((groups, True), (None, False)):
        source = ArraySource(inputs, np.zeros((40, 2)), classes=classes)
        selector = stratified_batches(source, 8)
        state, seen = selector.init(jax.random.key(0), None, None), []
        for _ in range(5):
            state, batch = selector.next_batch(state)
            seen.append(np.bincount(groups[batch.indices], minlength=4).tolist())
        assert all(counts == [2, 2, 2, 2] for counts in seen) == even


def test_a_function_may_read_inputs_and_labels_together():
    inputs, labels = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    read = lambda rows: Examples(inputs[rows], labels[rows])  # noqa: E731
    for options in ({"count": 6}, {"classes": np.arange(6) % 2}):
        source = HostSource(read, **options)
        found = source.take(jnp.array([5, 1]))
        assert (len(source), source.labels) == (6, None)
        assert (found.inputs.tolist(), found.labels.tolist()) == (inputs[[5, 1]].tolist(), [5.0, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how many rows there are; pass labels, classes or count"),
        ({"count": 0}, "count is 0 but must be an integer of at least 1"),
        ({"labels": np.arange(4)}, "labels are given but the function returns Examples"),
        ({"labels": np.zeros((0, 2))}, "the data hold 0 examples"),
        ({"labels": 5}, "nothing says how many rows there are"),
        ({"labels": [[0], [1, 2]]}, r"labels are .* but must make one array"),
        ({"labels": {"a": [[0], [1, 2]]}}, r"labels\['a'\] are .* but must make one array"),
        ({"labels": [0, 1], "classes": [[0], [1, 2]]}, "classes have shape of different"),
        ({"classes": [[0], [1, 2]]}, "classes have shape of different"),
    ],
)
def test_a_function_needs_to_know_its_number_of_rows(options, message):
    with pytest.raises(ValueError, match=message):
        HostSource(lambda rows: Examples(rows[:, None], rows), **options)


def test_a_count_must_be_that_of_the_arrays():
    with pytest.raises(ValueError, match="count is 3 but the inputs hold 4 examples"):
        HostSource(np.zeros((4, 2)), count=3)


def test_a_function_whose_parts_change_is_named():
    def read(rows):
        return {"x": rows[:, None]} if len(rows) == 1 else {"y": rows[:, None]}

    source = HostSource(read, np.arange(4))
    with pytest.raises(ValueError, match=r"reading 2 rows gave PyTreeDef.*'y'.* must give .*'x'"):
        source.take(jnp.array([0, 1]))


class Records:
    """A map-style data set of pairs, as PyTorch's; ``read`` counts the records that were read."""

    def __init__(self, labels, **columns):
        self.labels, self.read = labels, 0
        self.__dict__.update(columns)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        assert isinstance(row, int)
        self.read += 1
        return np.full((2, 3), row, np.float32), self.labels[row]


def test_labels_of_records_are_collected_once_and_from_a_column_that_agrees():
    labels = [3, 1, 3, 0, 1, 2, 2]
    seen = []
    plain = Records(labels)
    source = from_records(plain, progress=seen.append)
    assert source.classes.tolist() == labels
    assert seen == [7]
    assert plain.read >= 7
    with_column = Records(labels, targets=list(labels))
    assert from_records(with_column).classes.tolist() == labels
    assert with_column.read < 7 + 2
    other_labels = Records(labels, targets=[0] * 7)  # of a data set whose transform changes labels
    assert from_records(other_labels).classes.tolist() == labels
    assert from_records(Records([0.5, 1.5])).classes is None
    unread = Records(labels)
    assert from_records(unread, classes=None).classes is None
    assert unread.read < 3
    given = from_records(Records(labels), classes=list("abababa"))
    assert given.classes.tolist() == list("abababa")
    found = source.take(jnp.array([4, 0]))
    assert found.labels.tolist() == [1, 3]
    assert found.inputs[:, 0, 0].tolist() == [4.0, 0.0]


def test_many_records_are_read_at_once_where_the_data_set_can():
    class Many(Records):
        def __getitems__(self, rows):
            self.asked = rows
            return [self[row] for row in rows]

    records = Many([0, 1, 2])
    source = from_records(records)
    assert source.take(jnp.array([2, 1])).labels.tolist() == [2, 1]
    assert records.asked == [2, 1]


BAD_RECORDS = {
    "generator": ((x for x in range(3)), {}, "without len.* and .i., but examples are drawn at random"),
    "file name": ("train.csv", {}, "records are 'train.csv', without len"),
    "none": ([], {}, "records hold 0 examples but must hold at least one"),
    "no pair": ([1, 2], {}, "a record is 'int' but must be a pair .inputs, label."),
    "no label": ([{"x": 1}], {}, r"a record is \['x'\] but must be a pair"),
    "two labels": ([{"x": 1, "label": 1, "target": 2}], {}, "a record is .* but must be a pair"),
    "only a label": ([{"label": 1}], {}, "a record is .* but must be a pair"),
    "text": ([("a film", 1)], {}, "inputs have dtype <U6 but must be numbers"),
    "parse": ([(1, 2)], {"parse": lambda record: record[0]}, "parse returned 1 for record 0 but must"),
    "shapes": (
        [(np.zeros(2), 0), (np.zeros(3), 1)], {}, r"records 0 and 1 have shapes \(2,\) and \(3,\)",
    ),
    "word": ([(np.zeros(2), 0)], {"classes": "label"}, "classes is 'label' but must be one of labels"),
    "classes": ([(np.zeros(2), 0)], {"classes": [0, 1]}, r"classes have shape \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("records", "options", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_records_that_are_none_are_refused_in_a_sentence(records, options, message):
    with pytest.raises(ValueError, match=message):
        from_records(records, **options)


class Frame(dict):
    """What of a data frame is read: ``columns`` and the brackets."""

    columns = property(list)


def test_a_frame_becomes_inputs_and_labels():
    frame = Frame(a=[1, 2, 3], y=["cat", "ant", "cat"], b=[True, False, True])
    source = from_frame(frame, "y")
    assert source.take(jnp.arange(3)).inputs.tolist() == [[1, 1], [2, 0], [3, 1]]
    assert source.labels.tolist() == source.classes.tolist() == [1, 0, 1]
    numbers = from_frame(Frame(a=[1, 2], y=[0.5, 1.5]), "y")
    assert (numbers.labels.tolist(), numbers.classes) == ([0.5, 1.5], None)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(a=[1]), "label is 'y' but must name one of the columns"),
        (Frame(y=[1]), "beside at least one column of inputs"),
        (np.zeros((3, 2)), "label is 'y' but must name one of the columns"),
        (Frame(a=["x"], y=[1]), "column 'a' has dtype <U1 but must be numbers; encode it"),
        (Frame(a=[1.0, np.nan], y=[1, 0]), "column 'a' has 1 missing values but must have none"),
        (Frame(a=[1.0, 2.0], y=[np.nan, 0]), "column 'y' has 1 missing values but must have none"),
        (
            Frame(a=[1], y=[None]),
            "1 of 1 labels in column .y. are missing but every .*; drop",
        ),
    ],
)
def test_frames_that_hold_no_numbers_are_refused_in_a_sentence(frame, message):
    with pytest.raises(ValueError, match=message):
        from_frame(frame, "y")
