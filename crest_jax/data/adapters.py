"""Data of other libraries as sources: records that come one by one, and data frames."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.arrays import FROM_LABELS, as_numbers, map_parts
from crest_jax.data.classes import classes_of
from crest_jax.data.host import HostSource
from crest_jax.data.sources import ArraySource
from crest_jax.types import Examples

LABEL_KEYS = ("label", "labels", "target", "targets")
INFINITE = 2**40  # a length from here on is that of data that repeat for ever

# record -> (inputs, label), each an array or a pytree of arrays
Parse = Callable[[Any], tuple[Any, Any]]


def from_records(
    records: Any,
    parse: Parse | None = None,
    *,
    classes: Any = FROM_LABELS,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
) -> HostSource:
    """Return a source of records that are read one by one, when they are needed.

    Takes everything with ``len(records)`` and ``records[i]``: PyTorch's map-style data sets, Hugging
    Face ``Dataset``, grain's ``MapDataset`` and random-access sources, ``as_data_source()`` of
    TensorFlow Datasets, and lists. Many are read at once by ``__getitems__`` where there is one.

    Args:
      records: the data.
      parse: record -> (inputs, label), each an array or a pytree of arrays, of one shape for all
        records; pad or crop here. None: pairs are (inputs, label), and of a dictionary the entry
        "label", "labels", "target" or "targets" is the label and the rest is the inputs.
      classes: what draws are stratified by. "labels": the labels where they are whole numbers. They are
        collected once, from a column ``records["label"]`` or ``records.targets`` that agrees with a
        few records, else by reading all records, which takes as long as one pass. An array [n]: these.
        None: draws are not stratified, and nothing is collected.
      progress: called with the number of records read so far, while labels are collected.
      mesh: see ``HostSource``.

    Raises:
      ValueError: on an iterable without a length, records that no rule splits into inputs and label,
        or inputs and labels that are no numbers or differ in shape; from ``take`` also later.

    Example:
      >>> source = from_records([{"x": [0.0, 1.0], "label": 3}, {"x": [2.0, 3.0], "label": 5}])
      >>> source.take(np.array([1])).inputs.tolist(), source.classes.tolist()
      ([[2.0, 3.0]], [3, 5])
    """
    count = _length(records)
    parse = split_record if parse is None else parse
    read = _reader(records, parse)
    if isinstance(classes, str):
        _checks.one_of("classes", classes, (FROM_LABELS,))
        first = read(np.zeros(1, np.int64)).labels
        whole = isinstance(first, np.ndarray) and first.ndim == 1 and first.dtype.kind in "iub"
        classes = _collected(records, read, count, progress) if whole else None
    return HostSource(read, classes=classes, count=count, mesh=mesh)


def _length(records: Any) -> int:
    try:
        count = len(records)
    except TypeError:
        count = -1
    _checks.require(
        count >= 0 and hasattr(records, "__getitem__") and not isinstance(records, (str, bytes)),
        f"records are {_checks.brief(records)}, without len() and [i], but examples are drawn at "
        "random; write them to a numpy.memmap or a list first, or take the map-style form of the data.",
    )
    _checks.require(
        0 < count < INFINITE,
        f"records hold {count} examples but must hold at least one, and end; leave out repeat().",
    )
    return count


def split_record(record: Any) -> tuple[Any, Any]:
    """Return (inputs, label) of a record that is a pair, or a dictionary with a label.

    Raises:
      ValueError: on any other record.

    Example:
      >>> split_record({"image": 1, "label": 2}), split_record({"ids": 1, "mask": 2, "label": 3})
      ((1, 2), ({'ids': 1, 'mask': 2}, 3))
    """
    if isinstance(record, Mapping):
        keys = [key for key in LABEL_KEYS if key in record]
        rest = {key: value for key, value in record.items() if key not in keys}
        if len(keys) == 1 and rest:
            only = next(iter(rest.values())) if len(rest) == 1 else rest
            return only, record[keys[0]]
    elif isinstance(record, (tuple, list)) and len(record) == 2:
        return record[0], record[1]
    shown = list(record) if isinstance(record, Mapping) else type(record).__name__
    raise ValueError(
        f"a record is {_checks.brief(shown)} but must be a pair (inputs, label), or a dictionary with "
        f"one of {', '.join(LABEL_KEYS)} and inputs; pass parse, a function record -> (inputs, label)."
    )


def _reader(records: Any, parse: Parse) -> Callable[[np.ndarray], Examples]:
    many = getattr(records, "__getitems__", None)

    def read(rows: np.ndarray) -> Examples:
        wanted = rows.tolist()
        found = many(wanted) if many is not None else [records[row] for row in wanted]
        parsed = []
        for row, record in zip(wanted, found, strict=True):
            pair = parse(record)
            _checks.require(
                isinstance(pair, tuple) and len(pair) == 2,
                f"parse returned {_checks.brief(pair)} for record {row} but must return a tuple "
                "(inputs, label); return both.",
            )
            inputs, labels = pair
            parsed.append(
                Examples(map_parts(_one, inputs, "inputs"), map_parts(_one, labels, "labels"))
            )
        return jax.tree.map(lambda *leaves: _stacked(wanted, leaves), *parsed)

    return read


def _one(value: Any, name: str) -> np.ndarray:
    return np.asarray(as_numbers(value, name))


def _stacked(rows: list[int], leaves: tuple[np.ndarray, ...]) -> np.ndarray:
    shapes = [leaf.shape for leaf in leaves]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"records {rows[0]} and {rows[odd]} have shapes {shapes[0]} and {shapes[odd]} but all must "
            "have one shape; pad, crop or resize in parse."
        )
    return np.stack(leaves)


def _collected(
    records: Any,
    read: Callable[[np.ndarray], Examples],
    count: int,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """Return the labels [n] of all records."""
    probe = np.unique(np.linspace(0, count - 1, 5).astype(np.int64))
    for column in _columns(records):
        fits = column.shape == (count,) and column.dtype.kind in "iub"
        if fits and np.array_equal(column[probe], read(probe).labels):
            return column
    found = []
    for start in range(0, count, 256):
        rows = np.arange(start, min(start + 256, count))
        found.append(read(rows).labels)
        if progress is not None:
            progress(int(rows[-1]) + 1)
    return np.concatenate(found)


def _columns(records: Any) -> list[np.ndarray]:
    """Labels of all records as some data sets have them at hand."""
    names = [key for key in LABEL_KEYS if key in (getattr(records, "column_names", None) or ())]
    given = [records[name] for name in names]
    if getattr(records, "targets", None) is not None:
        given.append(records.targets)
    found = []
    for column in given:
        try:
            found.append(np.asarray(column))
        except (TypeError, ValueError, RuntimeError):  # labels of different lengths, say
            continue
    return found


def from_frame(
    frame: Any, label: str, *, classes: Any = FROM_LABELS, mesh: Mesh | None = None
) -> ArraySource:
    """Return a source of a data frame: numeric columns as inputs [n, d], float32, and one as labels.

    Takes frames of pandas, polars and the like: all with ``columns`` and ``frame[name]``.

    Args:
      frame: the data.
      label: the column of the labels. Strings and other categories are numbered in their sorted order,
        that of ``sorted(set(frame[label]))``; numbers stay, so that a column of floats is one to
        predict.
      classes: see ``ArraySource``: an array, not the name of a column.
      mesh: see ``ArraySource``.

    Raises:
      ValueError: when there is no such column or no other, and on columns that are no numbers or have
        missing values.

    Example:
      >>> class Frame(dict):
      ...     columns = property(list)
      >>> source = from_frame(Frame(a=[1, 2], b=[0.5, 0.25], kind=["cat", "ant"]), "kind")
      >>> source.take(np.array([0])).inputs.tolist(), source.labels.tolist()
      ([[1.0, 0.5]], [1, 0])
    """
    names = list(getattr(frame, "columns", ()))
    _checks.require(
        label in names and len(names) > 1,
        f"label is {_checks.brief(label)} but must name one of the columns {_checks.brief(names)}, "
        "beside at least one column of inputs; name the column of the labels.",
    )
    columns = [_numeric(frame[name], name) for name in names if name != label]
    values = np.asarray(frame[label])
    if values.dtype.kind in "iufb":
        values = _numeric(values, label, values.dtype)
    else:
        values = classes_of(values, name=f"labels in column {label!r}").codes
    return ArraySource(np.stack(columns, axis=1), values, classes=classes, mesh=mesh)


def _numeric(column: Any, name: Any, kind: Any = np.float32) -> np.ndarray:
    values = np.asarray(column)
    _checks.require(
        values.dtype.kind in "iufb",
        f"column {name!r} has dtype {values.dtype} but must be numbers; encode it (pandas.get_dummies "
        "for categories), or drop it.",
    )
    missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    _checks.require(
        missing == 0,
        f"column {name!r} has {missing} missing values but must have none; fill them, or drop their "
        "rows.",
    )
    return values.astype(kind)
