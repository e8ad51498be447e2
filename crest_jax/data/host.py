"""Data that stay in the machine's memory or on its disk: only the rows in use are on the device."""

import collections
import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.arrays import (
    FROM_LABELS,
    as_numbers,
    classes_for,
    labels_for,
    map_parts,
    number_of,
    rows_valid,
)
from crest_jax.data.devices import automatic, split
from crest_jax.types import Array, Examples

# rows [b] -> inputs [b, ...], or Examples where labels come with them
Read = Callable[[np.ndarray], Any]
DEPTH = 4  # fetches that wait at most; older ones are thrown away


class HostSource:
    """A data set that is read as it is needed: arrays, ``numpy.memmap``, or any function of rows.

    The rows that CREST and the random methods are about to use are fetched by a thread in the
    background while the device trains. With several processes each reads what its own devices take.

    Args:
      inputs: an array-like [n, ...] that integer arrays index (``numpy.memmap``, ``h5py`` after a
        sort, ...), a dictionary or tuple of such, or a function that returns the inputs [b, ...] of
        rows [b], or ``Examples`` with the labels of those rows as well (a plain pair is inputs of
        two parts); see ``from_records`` for records that come one by one. It is called from one
        thread at a time, and what it returns is copied. Lists and data frames become one array.
      labels: as in ``ArraySource``; they stay in memory, or where a ``numpy.memmap`` lies. None where
        the function returns ``Examples``, or the loss needs none.
      classes: as in ``ArraySource``; labels that the function returns are not collected for it.
      count: n, for a function without labels and classes.
      mesh: devices that work together; ``take`` splits what it returns over them where the number of
        rows allows. None: one device.

    Raises:
      ValueError: on empty data, inputs or labels that are no numbers or do not fit 32 bits, a wrong
        number of labels or classes and, from ``take``, rows out of range.
      RuntimeError: from ``take`` and ``prefetch`` in a forked child, where the reading thread is not.

    Example:
      >>> source = HostSource(lambda rows: rows[:, None] * 2.0, np.array([0, 1, 0]))
      >>> source.prefetch(rows := jnp.array([2, 1]))
      >>> source.take(rows).inputs.tolist()
      [[4.0], [2.0]]
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        classes: Any = FROM_LABELS,
        count: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Check the labels and read one row, to know what an example looks like."""
        if callable(inputs):
            self._read: Read = inputs
            self._count = _count_of(labels, classes, count)
        else:
            inputs = map_parts(_readable, inputs, "inputs")
            self._read = lambda rows: jax.tree.map(lambda leaf: leaf[rows], inputs)
            self._count = number_of(inputs)
            _checks.require(
                count is None or count == self._count,
                f"count is {count} but the inputs hold {self._count} examples; leave count out.",
            )
        self.labels = jax.tree.map(np.asarray, labels_for(labels, self._count))
        self.classes = classes_for(classes, self.labels, self._count)
        self.mesh = None if mesh is None else automatic(mesh)
        first = self._read(np.zeros(1, np.int64))
        self._whole = isinstance(first, Examples)  # the function reads labels as well
        _checks.require(
            not self._whole or labels is None,
            "labels are given but the function returns Examples, which hold labels; leave labels out.",
        )
        self._like = map_parts(_first_of, first, "inputs")
        self._process = os.getpid()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "crest_jax-read")
        self._waiting: collections.OrderedDict[int, tuple[Array, concurrent.futures.Future]]
        self._waiting = collections.OrderedDict()

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._count

    def prefetch(self, indices: Array) -> None:
        """Begin to fetch the examples at ``indices`` [b]; ``take`` of the same array waits for them."""
        _checks.not_forked(self._process, "this HostSource was made")
        if id(indices) in self._waiting:
            return
        self._waiting[id(indices)] = indices, self._thread.submit(self._fetch, indices, *_settings())
        while len(self._waiting) > DEPTH:
            _, (_, oldest) = self._waiting.popitem(last=False)
            oldest.cancel()

    def take(self, indices: Array) -> Examples:
        """Return the examples at ``indices`` [b]."""
        _checks.not_forked(self._process, "this HostSource was made")
        _, fetched = self._waiting.pop(id(indices), (None, None))
        if fetched is None:
            fetched = self._thread.submit(self._fetch, indices, *_settings())
        return fetched.result()

    def _fetch(self, rows: Array, wide: bool, device: Any) -> Examples:
        with jax.enable_x64(wide), jax.default_device(device):
            return self._examples(rows)

    def _examples(self, rows: Array) -> Examples:
        where = rows_valid(rows, len(self))
        if self.mesh is None:
            found = self._checked(where)
            return jax.tree.map(jnp.asarray, self._with_labels(found, where))
        sharding = split(self.mesh, len(where))
        parts: dict[Any, Any] = {}

        def part(index: tuple[slice, ...] | None) -> list[np.ndarray]:
            assert index is not None
            own = index[0].indices(len(where))
            if own not in parts:
                rows = where[index[0]]
                parts[own] = jax.tree.leaves(self._with_labels(self._checked(rows), rows))
            return parts[own]

        likes, structure = jax.tree.flatten(self._with_labels(self._like, where[:0]))

        def leaf(number: int, like: np.ndarray) -> Array:
            shape = (len(where), *like.shape[1:])
            return jax.make_array_from_callback(shape, sharding, lambda index: part(index)[number])

        return jax.tree.unflatten(structure, [leaf(i, like) for i, like in enumerate(likes)])

    def _with_labels(self, found: Any, rows: np.ndarray) -> Examples:
        if self._whole:
            return found
        return Examples(found, jax.tree.map(lambda leaf: np.asarray(leaf[rows]), self.labels))

    def _checked(self, rows: np.ndarray) -> Any:
        # A copy, for JAX may keep the very memory, and the reader may use it again.
        found = map_parts(lambda x, name: np.array(as_numbers(x, name)), self._read(rows), "inputs")
        own, first = str(jax.tree.structure(found)), str(jax.tree.structure(self._like))
        _checks.require(
            own == first,
            f"reading {len(rows)} rows gave {own} but must give {first}, as the first row did; mend "
            "the function that reads.",
        )
        for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(self._like), strict=True):
            shape = (len(rows), *like.shape[1:])
            _checks.require(
                leaf.shape == shape and leaf.dtype == like.dtype,
                f"reading {len(rows)} rows gave {leaf.dtype} of shape {leaf.shape} but must give "
                f"{like.dtype} of shape {shape}, as the first row did; mend the function that reads.",
            )
        return found


def _count_of(labels: Any, classes: Any, count: int | None) -> int:
    """Number of examples of a function of rows, by what is known of them."""
    # Parts of different lengths get their sentence later.
    known = jax.tree.leaves(map_parts(lambda leaf, _: _length(leaf), labels, "labels"))
    if not known and classes is not None and not isinstance(classes, str):
        known = jax.tree.leaves(_length(classes))
    if count is not None:
        _checks.positive_int("count", count)
        known = [count]
    _checks.require(
        bool(known),
        "inputs are a function of rows but nothing says how many rows there are; pass labels, classes "
        "or count.",
    )
    found = int(known[0])
    _checks.require(
        found > 0,
        "the data hold 0 examples but must hold at least one; pass data [n, ...], n >= 1.",
    )
    return found


def _length(part: Any) -> int | None:
    """Number of rows of an array or a list; None of one number."""
    return len(part) if isinstance(part, list) or np.ndim(part) > 0 else None


def _readable(inputs: Any, name: str) -> Any:
    """Return what integer arrays index: data frames, lists and the like become one array."""
    if isinstance(inputs, (list, tuple, np.ma.MaskedArray)) or _is_table(inputs):
        return as_numbers(inputs, name)
    _checks.require(
        len(np.shape(inputs)) > 0,
        f"{name} are {_checks.brief(inputs)} but must be an array [n, ...] or a function of rows; pass "
        "one entry for each example.",
    )
    return inputs


def _first_of(value: Any, name: str) -> np.ndarray:
    found = np.asarray(as_numbers(value, name))
    _checks.require(
        found.ndim > 0 and len(found) == 1,
        f"reading 1 row gave shape {found.shape} but must give shape (1, ...); mend the function that "
        "reads.",
    )
    return found


def _settings() -> tuple[bool, Any]:
    """Return what JAX keeps for each thread, for the thread that reads: 64 bits or not, the device."""
    config: Any = jax.config
    return config.jax_enable_x64, config.jax_default_device


def _is_table(inputs: Any) -> bool:
    """Tell data frames and sparse matrices, whose brackets do not pick rows of numbers."""
    return hasattr(inputs, "iloc") or hasattr(inputs, "toarray")
