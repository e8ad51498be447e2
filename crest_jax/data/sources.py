"""Rows of a data set: random access, stratified random subsets, padded chunks."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crest_jax import _checks
from crest_jax.data.devices import automatic, place, split, spread
from crest_jax.types import Array, ArrayLike, Examples


class ArraySource:
    """A data set held in device memory.

    Args:
      inputs: [n, ...], numbers of any dtype (``uint8`` images stay ``uint8``; normalise in the model);
        JAX holds 64-bit ones in 32 bits, unless ``jax_enable_x64`` is set.
      labels: [n], integer classes in ``[0, num_classes)``. Numbers that no example has cost nothing.
      num_classes: number of classes; ``None`` takes the highest label plus one.
      mesh: devices that work together; ``take`` splits what it returns over them where the number of
        rows allows, so that everything computed from it is shared out. None: one device.
      shard: hold each example on one device of the mesh only, for data that one cannot hold. With
        several processes ``inputs`` are then this process's share of the rows, equally many in each,
        in the order of the processes; ``labels`` are those of all rows.

    Raises:
      ValueError: on empty data, inputs that are no numbers or do not fit 32 bits, a wrong number of
        labels, labels out of range, or ``shard`` without a mesh.

    Example:
      >>> source = ArraySource(np.zeros((6, 2), np.float32), np.array([0, 1, 2, 0, 1, 2]))
      >>> len(source), source.take(jnp.array([4, 5])).labels.tolist()
      (6, [1, 2])
    """

    def __init__(
        self,
        inputs: ArrayLike,
        labels: ArrayLike,
        num_classes: int | None = None,
        *,
        mesh: Mesh | None = None,
        shard: bool = False,
    ) -> None:
        """Check the arrays and put them on the devices."""
        numbers = as_numbers(inputs)
        _checks.require(
            numbers.ndim > 0 and numbers.shape[0] > 0,
            f"inputs have shape {numbers.shape} but must hold at least one example; pass data "
            "of shape [n, ...] with n >= 1.",
        )
        _checks.require(
            mesh is not None or not shard,
            "shard is True but mesh is None, so there is nothing to shard over; pass a mesh.",
        )
        share = numbers.shape[0]
        count = share * (jax.process_count() if shard else 1)
        if num_classes is not None:
            _checks.positive_int("num_classes", num_classes)
        self.labels = _checks.labels_valid(labels, count, num_classes)
        self.num_classes = num_classes if num_classes is not None else int(self.labels.max()) + 1
        self.mesh = None if mesh is None else automatic(mesh)
        classes = place(jnp.asarray(self.labels), mesh)
        if shard and mesh is not None:
            held = spread(np.asarray(numbers), mesh)
            # Rows that fill a process's devices evenly stand after each share.
            self._share, self._filled = share, held.shape[0] // jax.process_count() - share
        else:
            held = place(jnp.asarray(numbers), mesh)
            self._share, self._filled = share, 0
        self._examples = Examples(held, classes)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: Array) -> Examples:
        """Return the examples at ``rows`` [b], gathered on the device.

        Rows on the host are checked; the values of rows on the device are not read.
        """
        if not isinstance(rows, jax.Array):
            rows = jnp.asarray(rows_valid(rows, len(self)))
        sharding = None if self.mesh is None else split(self.mesh, len(rows))
        return _take(self._examples, rows, self._share, self._filled, sharding)


@partial(jax.jit, static_argnames=("share", "filled", "sharding"))
def _take(
    examples: Examples, rows: Array, share: int, filled: int, sharding: NamedSharding | None
) -> Examples:
    places = rows + rows // share * filled if filled else rows
    found = Examples(jnp.take(examples.inputs, places, axis=0), jnp.take(examples.labels, rows, axis=0))
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)


def as_numbers(value: Any, name: str = "inputs") -> np.ndarray | Array:
    """Return an array of numbers that JAX holds as they are, up to the rounding of its floats.

    Raises:
      ValueError: on sparse matrices, masked entries, text, objects, lists whose entries differ in
        shape, and on numbers beyond the 32 bits that JAX gives them.

    Example:
      >>> as_numbers([[1, 2], [3, 4]]).shape
      (2, 2)
    """
    if isinstance(value, jax.Array):
        return value
    found = _checks.host_array(value, name, "give every example the same shape")
    kind = found.dtype
    _checks.require(
        kind.kind in "biufc" or kind == jnp.bfloat16,
        f"{name} have dtype {kind} but must be numbers; encode them as numbers of one dtype first.",
    )
    if kind == np.longdouble or kind == np.clongdouble:
        found = found.astype(np.complex128 if kind.kind == "c" else np.float64)
    _check_width(found, name)
    return found


def _check_width(values: np.ndarray, name: str) -> None:
    """Require finite numbers to stay what they are in the type that JAX gives them."""
    kept = jax.dtypes.canonicalize_dtype(values.dtype)
    if kept == values.dtype or values.dtype.kind == "c" or not values.size:
        return
    limits = np.iinfo(kept) if values.dtype.kind in "iu" else np.finfo(kept)
    low, high = values.min(), values.max()
    fits = low >= limits.min and high <= limits.max
    if not fits and values.dtype.kind == "f":  # NaN and infinity stay what they are
        fits = not (np.isfinite(values) & (np.abs(values) > limits.max)).any()
    _checks.require(
        bool(fits),
        f"{name} span {low:g} to {high:g}, beyond {kept}, in which JAX holds {values.dtype}; scale or "
        'number them anew, or set jax.config.update("jax_enable_x64", True).',
    )


def rows_valid(rows: Any, count: int) -> np.ndarray:
    """Return rows of ``count`` examples as int32, refusing what is none.

    Example:
      >>> rows_valid([2, 0], 3).tolist()
      [2, 0]
    """
    found = np.asarray(rows)
    _checks.require(
        found.dtype.kind in "iu" or not found.size,
        f"rows have dtype {found.dtype} but must be integers; pass positions in the data set.",
    )
    if found.size:
        low, high = int(found.min()), int(found.max())
        _checks.require(
            low >= 0 and high < count,
            f"rows span {low} to {high} but must lie in [0, {count}); pass positions in the data set.",
        )
    return found.astype(np.int32)


def padded_chunks(count: int, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split ``range(count)`` into chunks of one size, the last one padded.

    Args:
      count: number of positions.
      chunk: size of every chunk.

    Yields:
      Positions [chunk], int32 (padding repeats position 0), and a mask [chunk], bool, False on
      padding.

    Example:
      >>> [(p.tolist(), m.tolist()) for p, m in padded_chunks(3, 2)]
      [([0, 1], [True, True]), ([2, 0], [True, False])]
    """
    for start in range(0, count, chunk):
        positions = np.arange(start, start + chunk, dtype=np.int32)
        mask = positions < count
        yield np.where(mask, positions, 0), mask
