"""Rows of a data set: random access, stratified random subsets, padded chunks."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crest_jax import _checks
from crest_jax.devices import automatic, place, split, spread
from crest_jax.types import Array, ArrayLike, Examples


class ArraySource:
    """A data set held in device memory.

    Args:
      inputs: [n, ...], any dtype (``uint8`` images stay ``uint8``; normalise in the model).
      labels: [n], integer classes in ``[0, num_classes)``.
      num_classes: number of classes; ``None`` takes the highest label plus one.
      mesh: devices that work together; ``take`` splits what it returns over them where the number of
        rows allows, so that everything computed from it is shared out. None: one device.
      shard: hold each example on one device of the mesh only, for data that one cannot hold. With
        several processes ``inputs`` are then this process's share of the rows, equally many in each,
        in the order of the processes; ``labels`` are those of all rows.

    Raises:
      ValueError: on empty data, a wrong number of labels, labels out of range, or ``shard`` without a
        mesh.

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
        _checks.require(
            np.ndim(inputs) > 0 and np.shape(inputs)[0] > 0,
            f"inputs have shape {np.shape(inputs)} but must hold at least one example; pass data "
            "of shape [n, ...] with n >= 1.",
        )
        _checks.require(
            mesh is not None or not shard,
            "shard is True but mesh is None, so there is nothing to shard over; pass a mesh.",
        )
        share = np.shape(inputs)[0]
        count = share * (jax.process_count() if shard else 1)
        self.labels = _checks.labels_valid(labels, count, num_classes)
        self.num_classes = num_classes if num_classes is not None else int(self.labels.max()) + 1
        self.mesh = None if mesh is None else automatic(mesh)
        classes = place(jnp.asarray(self.labels), mesh)
        if shard and mesh is not None:
            held = spread(np.asarray(inputs), mesh)
            # Rows that fill a process's devices evenly stand after each share.
            self._share, self._filled = share, held.shape[0] // jax.process_count() - share
        else:
            held = place(jnp.asarray(inputs), mesh)
            self._share, self._filled = share, 0
        self._examples = Examples(held, classes)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: Array) -> Examples:
        """Return the examples at ``rows`` [b], gathered on the device."""
        sharding = None if self.mesh is None else split(self.mesh, len(rows))
        return _take(self._examples, rows, self._share, self._filled, sharding)


@partial(jax.jit, static_argnames=("share", "filled", "sharding"))
def _take(
    examples: Examples, rows: Array, share: int, filled: int, sharding: NamedSharding | None
) -> Examples:
    places = rows + rows // share * filled if filled else rows
    found = Examples(jnp.take(examples.inputs, places, axis=0), jnp.take(examples.labels, rows, axis=0))
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
