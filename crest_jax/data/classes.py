"""Class numbers as they are counted: from 0, without gaps, whatever the labels are called."""

import math
from typing import Any, NamedTuple

import numpy as np

from crest_jax import _checks
from crest_jax.types import Source


class Classes(NamedTuple):
    """A partition of examples. Classes without an example do not count.

    Attributes:
      codes: [...], int32, the class of each example, in [0, c); every class occurs.
      names: [c], the labels as given, rising.
    """

    codes: np.ndarray
    names: np.ndarray

    @property
    def number(self) -> int:
        """How many classes occur."""
        return len(self.names)


def classes_of(labels: Any, num_classes: int | None = None, *, name: str = "labels") -> Classes:
    """Number the classes that occur from 0, in the order of their labels.

    Args:
      labels: any shape; integers of any size, booleans or strings.
      num_classes: labels from it on, or below 0, are an error; None allows all.
      name: what a sentence calls the labels.

    Returns:
      Codes in the shape of the labels. Labels 0 to c - 1 that all occur are their own codes.

    Raises:
      ValueError: on labels that are neither whole numbers nor strings, masked, or out of range.

    Example:
      >>> found = classes_of([3, 10**9, 3])
      >>> found.codes.tolist(), found.names.tolist()
      ([0, 1, 0], [3, 1000000000])
      >>> classes_of(["cat", "ant"]).codes.tolist()
      [1, 0]
    """
    _checks.unmasked(labels, name)
    values = np.asarray(labels)
    if not values.size:
        return Classes(np.zeros(values.shape, np.int32), values.ravel())
    if values.dtype == object:  # strings of a data frame, say
        kinds = {type(value) for value in values.ravel().tolist()}
        if kinds == {str}:
            values = values.astype(str)
        elif kinds <= {int, bool}:
            values = np.array([int(value) for value in values.ravel()]).reshape(values.shape)
    missing = sum(map(_missing, values.ravel().tolist())) if values.dtype.kind in ("f", "O") else 0
    _checks.require(
        not missing,
        f"{missing} of {values.size} {name} are missing but every example must have one; drop these "
        "rows, or make what is missing a class of its own.",
    )
    _checks.require(
        values.dtype.kind in "iubUS",
        f"{name} have dtype {values.dtype} but must be whole numbers or strings; cast class numbers to "
        "int32.",
    )
    if num_classes is not None:
        _checks.positive_int("num_classes", num_classes)
        _checks.require(
            values.dtype.kind in "iub",
            f"num_classes is {num_classes} but labels have dtype {values.dtype}; leave num_classes "
            "out.",
        )
        low, high = int(values.min()), int(values.max())
        _checks.require(
            low >= 0 and high < num_classes,
            f"labels span {low} to {high} but must lie in [0, {num_classes}); renumber the classes "
            "from 0 or raise num_classes.",
        )
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        if high - low < max(2 * values.size, 65_536) and high < 2**63:
            # Few numbers lie between: count them, which takes less time than sorting.
            places = values.ravel().astype(np.int64) - low
            present = np.bincount(places, minlength=high - low + 1) > 0
            if low == 0 and present.all():
                return Classes(values.astype(np.int32), np.arange(high + 1))
            codes = (np.cumsum(present) - 1)[places].astype(np.int32)
            return Classes(codes.reshape(values.shape), np.flatnonzero(present) + low)
    names, numbers = np.unique(values, return_inverse=True)
    return Classes(numbers.reshape(values.shape).astype(np.int32), names)


def as_named(found: Classes) -> np.ndarray:
    """Return the class of each example as it is named, a number that means the same everywhere.

    Raises:
      ValueError: where names are no whole numbers of 64 bits.

    Example:
      >>> as_named(classes_of([7, 3])).tolist()
      [7, 3]
    """
    _checks.require(
        found.names.dtype.kind in "iub" and (not len(found.names) or found.names[-1] < 2**63),
        f"labels have dtype {found.names.dtype} but those of a stream, or of several processes, must "
        "be whole numbers; number the classes first.",
    )
    return found.names.astype(np.int64)[found.codes]


def _missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or what pandas has for them."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def classes_in(source: Source) -> Classes:
    """Number the classes of a source; one class where it has none.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> classes_in(ArraySource(np.zeros((2, 1)), np.array([7, 3]))).codes.tolist()
      [1, 0]
    """
    count = _checks.rows_in(source)
    _checks.require(
        hasattr(source, "classes"),
        f"source is a {type(source).__name__} without classes but must have them; set classes to "
        "those of all examples, or to None for draws that are not stratified.",
    )
    return one_class(count) if source.classes is None else classes_of(source.classes)


def one_class(count: int) -> Classes:
    """All examples in one class."""
    return Classes(np.zeros(count, np.int32), np.zeros(1, np.int32))
