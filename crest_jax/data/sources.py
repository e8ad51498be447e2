"""Examples held in device memory, and padded chunks of positions."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

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
from crest_jax.data.devices import automatic, place, split, spread
from crest_jax.types import Array, Examples


class ArraySource:
    """A data set held in device memory.

    Args:
      inputs: [n, ...], numbers of any dtype (``uint8`` images stay ``uint8``; normalise in the model),
        or a dictionary or tuple of such arrays; JAX holds 64-bit ones in 32 bits, unless
        ``jax_enable_x64`` is set.
      labels: what the loss compares with: classes [n] as integers from 0, numbers [n] or [n, k], 0/1
        [n, c], tokens [n, t], masks [n, h, w], or a dictionary or tuple of such; None where the loss
        needs none.
      classes: [n], whole numbers or strings: draws are stratified by them, and coresets chosen class by
        class. "labels" takes integer labels [n], and none where the labels are anything else. None:
        draws are not stratified.
      mesh: devices that work together; ``take`` splits what it returns over them where the number of
        rows allows, so that everything computed from it is shared out. None: one device.
      shard: hold each example on one device of the mesh only, for data that one cannot hold. With
        several processes ``inputs`` are then this process's share of the rows, equally many in each,
        in the order of the processes; ``labels`` are those of all rows.

    Raises:
      ValueError: on empty data, inputs or labels that are no numbers or do not fit 32 bits, a wrong
        number of labels or classes, or ``shard`` without a mesh.

    Example:
      >>> source = ArraySource(np.zeros((6, 2), np.float32), np.array([0, 1, 2, 0, 1, 2]))
      >>> len(source), source.take(jnp.array([4, 5])).labels.tolist()
      (6, [1, 2])
      >>> texts = {"ids": np.ones((4, 7), np.int32), "mask": np.ones((4, 7), bool)}
      >>> source = ArraySource(texts, np.array([0.5, 1.5, 0.0, 2.0]))
      >>> source.take(jnp.array([1])).inputs["ids"].shape, source.classes
      ((1, 7), None)
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        classes: Any = FROM_LABELS,
        mesh: Mesh | None = None,
        shard: bool = False,
    ) -> None:
        """Check the arrays and put them on the devices."""
        numbers = map_parts(as_numbers, inputs, "inputs")
        share = number_of(numbers)
        _checks.require(
            mesh is not None or not shard,
            "shard is True but mesh is None, so there is nothing to shard over; pass a mesh.",
        )
        self._count = share * (jax.process_count() if shard else 1)
        checked = labels_for(labels, self._count)
        self.labels = jax.tree.map(np.asarray, checked)
        self.classes = classes_for(classes, self.labels, self._count)
        self.mesh = None if mesh is None else automatic(mesh)
        on_devices = place(jax.tree.map(jnp.asarray, checked), mesh)
        filled = 0
        if shard and mesh is not None:
            held = jax.tree.map(lambda leaf: spread(np.asarray(leaf), mesh), numbers)
            # Rows that fill a process's devices evenly stand after each share.
            filled = jax.tree.leaves(held)[0].shape[0] // jax.process_count() - share
        else:
            held = place(jax.tree.map(jnp.asarray, numbers), mesh)
        self.arrays = Examples(held, on_devices)
        self.gather = Gather(self.mesh, share, filled)

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._count

    def take(self, indices: Array) -> Examples:
        """Return the examples at ``indices`` [b], gathered on the device.

        Those on the host are checked; the values of those on the device are not read.
        """
        if not isinstance(indices, jax.Array):
            indices = jnp.asarray(rows_valid(indices, len(self)))
        return self.gather(self.arrays, indices)


class Gather(NamedTuple):
    """How the arrays of an ``ArraySource`` are read, also inside a program; a value without data.

    Attributes:
      mesh: the devices that what is read is split over; None: one.
      share: examples that each process passed.
      filled: rows that follow each share.
    """

    mesh: Mesh | None
    share: int
    filled: int

    def __call__(self, arrays: Examples, indices: Array) -> Examples:
        """Return the examples at ``indices`` [b] out of ``arrays``."""
        sharding = None if self.mesh is None else split(self.mesh, indices.shape[0])
        return _take(arrays, indices, self.share, self.filled, sharding)


@partial(jax.jit, static_argnames=("share", "filled", "sharding"))
def _take(
    examples: Examples, rows: Array, share: int, filled: int, sharding: NamedSharding | None
) -> Examples:
    places = rows + rows // share * filled if filled else rows
    inputs = jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0), examples.inputs)
    found = Examples(inputs, jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), examples.labels))
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)


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
