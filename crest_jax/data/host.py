"""Data that stay in the machine's memory or on its disk: only the rows in use are on the device."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.devices import automatic, split
from crest_jax.data.sources import as_numbers, rows_valid
from crest_jax.types import Array, Examples

Read = Callable[[np.ndarray], np.ndarray]  # rows [b] -> inputs [b, ...]
DEPTH = 4  # fetches that wait at most; older ones are thrown away


class HostSource:
    """A data set that is read as it is needed: arrays, ``numpy.memmap``, or any function of rows.

    The rows that CREST and the random methods are about to use are fetched by a thread in the
    background while the device trains. With several processes each reads what its own devices take.

    Args:
      inputs: an array-like [n, ...] that integer arrays index (``numpy.memmap``, ``h5py`` after a
        sort, ...), or a function that returns the inputs [b, ...] of rows [b]; see ``read_records`` for
        records that come one by one. It is called from one thread at a time, and what it returns is
        copied. Lists and data frames become one array.
      labels: [n], integer classes in ``[0, num_classes)``; they stay in memory. Numbers that no example
        has cost nothing.
      num_classes: number of classes; ``None`` takes the highest label plus one.
      mesh: devices that work together; ``take`` splits what it returns over them where the number of
        rows allows. None: one device.

    Raises:
      ValueError: on empty data, inputs that are no numbers or do not fit 32 bits, a wrong number of
        labels, labels out of range and, from ``take``, rows out of range.
      RuntimeError: from ``take`` and ``prefetch`` in a forked child, where the reading thread is not.

    Example:
      >>> source = HostSource(lambda rows: rows[:, None] * 2.0, np.array([0, 1, 0]))
      >>> source.prefetch(rows := jnp.array([2, 1]))
      >>> source.take(rows).inputs.tolist()
      [[4.0], [2.0]]
    """

    def __init__(
        self, inputs: Any, labels: Any, num_classes: int | None = None, *, mesh: Mesh | None = None
    ) -> None:
        """Check the labels and read one row, to know what an example looks like."""
        if isinstance(inputs, (list, tuple, np.ma.MaskedArray)) or _is_table(inputs):
            inputs = as_numbers(inputs)
        shape = np.shape(labels) if callable(inputs) else np.shape(inputs)
        _checks.require(
            len(shape) > 0,
            f"inputs are {_checks.brief(inputs)} but must be an array [n, ...] or a function of rows; "
            "pass one entry for each example.",
        )
        count = shape[0]
        _checks.require(
            count > 0,
            "the data hold 0 examples but must hold at least one; pass data [n, ...], n >= 1.",
        )
        if num_classes is not None:
            _checks.positive_int("num_classes", num_classes)
        self.labels = _checks.labels_valid(labels, count, num_classes)
        self.num_classes = num_classes if num_classes is not None else int(self.labels.max()) + 1
        self.mesh = None if mesh is None else automatic(mesh)
        self._read: Read = inputs if callable(inputs) else lambda rows: inputs[rows]
        first = np.asarray(as_numbers(self._read(np.zeros(1, np.int64))))
        _checks.require(
            first.ndim > 0 and len(first) == 1,
            f"reading 1 row gave shape {first.shape} but must give shape (1, ...); mend the function "
            "that reads.",
        )
        self._like = first[0]
        self._process = os.getpid()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "crest_jax-read")
        self._waiting: collections.OrderedDict[int, tuple[Array, concurrent.futures.Future]]
        self._waiting = collections.OrderedDict()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def prefetch(self, rows: Array) -> None:
        """Begin to fetch rows [b]; ``take`` of the same array waits for them."""
        _checks.not_forked(self._process, "this HostSource was made")
        if id(rows) in self._waiting:
            return
        self._waiting[id(rows)] = rows, self._thread.submit(self._fetch, rows, *_settings())
        while len(self._waiting) > DEPTH:
            _, (_, oldest) = self._waiting.popitem(last=False)
            oldest.cancel()

    def take(self, rows: Array) -> Examples:
        """Return the examples at ``rows`` [b]."""
        _checks.not_forked(self._process, "this HostSource was made")
        _, fetched = self._waiting.pop(id(rows), (None, None))
        if fetched is None:
            fetched = self._thread.submit(self._fetch, rows, *_settings())
        return fetched.result()

    def _fetch(self, rows: Array, wide: bool, device: Any) -> Examples:
        with jax.enable_x64(wide), jax.default_device(device):
            return self._examples(rows)

    def _examples(self, rows: Array) -> Examples:
        where = rows_valid(rows, len(self))
        labels = self.labels[where]
        if self.mesh is None:
            return Examples(jnp.asarray(self._checked(where)), jnp.asarray(labels))
        sharding = split(self.mesh, len(where))
        parts: dict[Any, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            own = index[0].indices(len(where))
            if own not in parts:
                parts[own] = self._checked(where[index[0]])
            return parts[own]

        shape = (len(where), *self._like.shape)
        inputs = jax.make_array_from_callback(shape, sharding, part)
        return Examples(
            inputs, jax.make_array_from_callback(labels.shape, sharding, lambda index: labels[index])
        )

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        # A copy, for JAX may keep the very memory, and the reader may use it again.
        found = np.array(as_numbers(self._read(rows)))
        shape = (len(rows), *self._like.shape)
        _checks.require(
            found.shape == shape and found.dtype == self._like.dtype,
            f"reading {len(rows)} rows gave {found.dtype} of shape {found.shape} but must give "
            f"{self._like.dtype} of shape {shape}, as the first row did; mend the function that reads.",
        )
        return found


def _settings() -> tuple[bool, Any]:
    """Return what JAX keeps for each thread, for the thread that reads: 64 bits or not, the device."""
    config: Any = jax.config
    return config.jax_enable_x64, config.jax_default_device


def _is_table(inputs: Any) -> bool:
    """Tell data frames and sparse matrices, whose brackets do not pick rows of numbers."""
    return hasattr(inputs, "iloc") or hasattr(inputs, "toarray")


def read_records(records: Sequence[Any], parse: Callable[[Any], Any]) -> Read:
    """Return a function for ``HostSource`` that reads records one by one.

    Args:
      records: a random-access source, as ``builder.as_data_source()`` of TensorFlow Datasets or Grain's
        data sources: ``records[i]``, or ``records.__getitems__(list)`` where there is one.
      parse: record -> inputs [...] as an array.

    Example:
      >>> read = read_records([{"image": 3}, {"image": 5}], lambda record: record["image"])
      >>> read(np.array([1, 0])).tolist()
      [5, 3]
    """
    many = getattr(records, "__getitems__", None)

    def read(rows: np.ndarray) -> np.ndarray:
        wanted = rows.tolist()
        found = many(wanted) if many is not None else [records[row] for row in wanted]
        return np.stack([np.asarray(parse(record)) for record in found])

    return read
