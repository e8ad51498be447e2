"""How many picks each class of a pool gets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from crest_jax import _checks
from crest_jax.coresets.numbers import real_array
from crest_jax.data.classes import Classes, classes_of
from crest_jax.data.quotas import covered_as_a_whole, quotas_for


class Partition(NamedTuple):
    """The classes of ``p`` pools of ``n`` examples, and the picks of each.

    Attributes:
      labels: [p, n], int32, in [0, c); zero where a pool is covered as a whole.
      counts: [p, c], examples.
      quotas: [p, c], picks.
      spread: examples of classes without a pick count at all picks, not at the nearest one.
    """

    labels: np.ndarray
    counts: np.ndarray
    quotas: np.ndarray
    spread: bool

    @property
    def number(self) -> int:
        """Number of classes."""
        return self.counts.shape[1]

    @property
    def orphans(self) -> bool:
        """Whether some class has examples and no pick."""
        return bool(((self.quotas == 0) & (self.counts > 0)).any())


def partition(
    labels: Any, shape: tuple[int, ...], size: int, quotas: Any, num_classes: int | None
) -> Partition:
    """Number the classes that occur, and divide ``size`` picks among them.

    Args:
      labels: whole numbers or strings, or None for one class.
      shape: that labels must have, (n,) or (p, n).
      size: picks in all.
      quotas: see ``select_coreset``.
      num_classes: see ``select_coreset``.

    Raises:
      ValueError: on labels of another shape or kind, and on quotas that cannot be met.

    Example:
      >>> found = partition([7, 7, 9, 7], (4,), 4, "proportional", None)
      >>> found.labels.tolist(), found.quotas.tolist()
      ([[0, 0, 1, 0]], [[3, 1]])
    """
    proportional = isinstance(quotas, str) and quotas == "proportional"
    if labels is None:
        _checks.require(
            proportional,
            f"quotas are {_checks.brief(quotas)} but there are no labels, so there is one class; pass "
            "labels, or leave quotas out.",
        )
        values, names = np.zeros(shape, np.int32), np.zeros(1, int)
    else:
        found = classes_shaped(labels, shape, num_classes)
        values, names = found.codes, found.names
        quotas = _by_code(quotas, names, num_classes)
    values = values.reshape(-1, shape[-1])
    counts = _counts(values, len(names))
    if proportional:
        aside = covered_as_a_whole(counts, size, np)
        if aside.any():
            values = np.where(aside[:, None], np.int32(0), values)
            counts = _counts(values, 1 if aside.all() else len(names))
    return Partition(values, counts, quotas_for(counts, size, quotas, names=names), proportional)


def check_size(size: Any, count: int, what: str) -> None:
    """Require a number of picks from 1 to ``count``.

    Args:
      size: picks.
      count: things to choose from.
      what: their name, a plural.

    Example:
      >>> check_size(3, 5, "examples")
    """
    _checks.positive_int("size", size)
    _checks.require(
        size <= count,
        f"size is {size} but the pool holds {count} {what} and no {what.removesuffix('s')} is chosen "
        f"twice; ask for at most {count}.",
    )


def _counts(values: np.ndarray, classes: int) -> np.ndarray:
    offsets = np.arange(len(values), dtype=np.int64)[:, None] * classes
    found = np.bincount((values + offsets).reshape(-1), minlength=len(values) * classes)
    return found.reshape(len(values), classes)


def classes_shaped(labels: Any, shape: tuple[int, ...], num_classes: int | None) -> Classes:
    """Return the classes of labels of a certain shape; see ``classes_of``.

    Raises:
      ValueError: on labels of another shape.

    Example:
      >>> classes_shaped([5, 7], (2,), None).codes.tolist()
      [0, 1]
    """
    found = label_shape(labels)
    _checks.require(
        found == shape,
        f"labels have shape {found} but must have shape {shape}, one per example; pass one class per "
        "example.",
    )
    return classes_of(labels, num_classes)


def label_shape(labels: Any) -> tuple[int, ...]:
    """Return the shape of labels.

    Raises:
      ValueError: on lists whose entries differ in length.

    Example:
      >>> label_shape([1, 2])
      (2,)
    """
    try:
        return np.shape(labels)
    except ValueError:
        raise ValueError(
            f"labels are {_checks.brief(labels)}, lists of different lengths, but must be one class "
            "per example; pass an array [n]."
        ) from None


def _by_code(quotas: Any, names: np.ndarray, num_classes: int | None) -> Any:
    """Return quotas in the order of the classes that occur, where they are given by label."""
    if isinstance(quotas, str):
        return quotas
    if isinstance(quotas, Mapping):
        known = names.tolist()
        strange = [label for label in quotas if label not in known]
        _checks.require(
            not strange,
            f"quotas name the class {_checks.brief(strange[0] if strange else None)} but no example "
            "has it; name classes that occur.",
        )
        return np.array([quotas.get(label, 0) for label in known])
    each = np.asarray(real_array(quotas, "quotas"))
    if each.ndim != 1 or len(each) == len(names) or names.dtype.kind not in "iu":
        return each
    highest = int(names[-1]) + 1 if num_classes is None else num_classes
    if len(each) != highest or names[0] < 0:
        return each
    own = each[names]
    _checks.require(
        bool(own.sum() == each.sum()),
        f"quotas ask for {each.sum() - own.sum()} picks of classes that no example has; set them to 0.",
    )
    return own
