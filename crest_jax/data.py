"""Rows of a data set: random access, stratified random subsets, padded chunks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.types import Array, ArrayLike, Examples


class ArraySource:
    """A data set held in device memory.

    Args:
      inputs: [n, ...], any dtype (``uint8`` images stay ``uint8``; normalise in the model).
      labels: [n], integer classes in ``[0, num_classes)``.
      num_classes: number of classes; ``None`` takes the highest label plus one.

    Raises:
      ValueError: on empty data, a wrong number of labels, or labels out of range.

    Example:
      >>> source = ArraySource(np.zeros((6, 2), np.float32), np.array([0, 1, 2, 0, 1, 2]))
      >>> len(source), source.take(jnp.array([4, 5])).labels.tolist()
      (6, [1, 2])
    """

    def __init__(self, inputs: ArrayLike, labels: ArrayLike, num_classes: int | None = None) -> None:
        """Check the arrays and put them on the device."""
        _checks.require(
            np.ndim(inputs) > 0 and np.shape(inputs)[0] > 0,
            f"inputs have shape {np.shape(inputs)} but must hold at least one example; pass data "
            "of shape [n, ...] with n >= 1.",
        )
        self.labels = _checks.labels_valid(labels, np.shape(inputs)[0], num_classes)
        self.num_classes = num_classes if num_classes is not None else int(self.labels.max()) + 1
        self._examples = Examples(jnp.asarray(inputs), jnp.asarray(self.labels))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: Array) -> Examples:
        """Return the examples at ``rows`` [b], gathered on the device."""
        return _take(self._examples, rows)


@jax.jit
def _take(examples: Examples, rows: Array) -> Examples:
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), examples)


class Pool(NamedTuple):
    """The examples in play, in a random order within each class.

    A draw walks through each class's order and starts again at its end, so that no row comes twice
    in one subset, no row comes again before all others of its class, and a draw costs time in the
    subset's size only.
    """

    order: Array  # [n], int32: rows sorted by class; in each class the rows in play come first
    starts: Array  # [c], int32: where each class begins in `order`
    counts: Array  # [c], int32: rows of each class in play
    cursors: Array  # [c], int32: rows of each class drawn since the last shuffle


def shuffle_pool(key: Array, classes: Array, active: Array, num_classes: int) -> Pool:
    """Shuffle the rows in play within each class.

    Args:
      key: PRNG key.
      classes: [n], int32, in ``[0, num_classes)``.
      active: [n], bool, rows in play.
      num_classes: static number of classes.

    Returns:
      A pool with its cursors at 0. ``O(n log n)``, once per pass over the data.

    Example:
      >>> classes = jnp.array([0, 1, 0, 1])
      >>> active = jnp.array([True, True, False, True])
      >>> shuffle_pool(jax.random.key(0), classes, active, 2).counts.tolist()
      [1, 2]
    """
    noise = jax.random.uniform(key, classes.shape)
    group = 2 * classes + (~active).astype(classes.dtype)
    rows = jnp.arange(classes.shape[0], dtype=jnp.int32)
    order = jax.lax.sort((group, noise, rows), num_keys=2)[2]
    sizes = jnp.bincount(classes, length=num_classes)
    counts = jnp.bincount(classes, weights=active.astype(jnp.int32), length=num_classes)
    zeros = jnp.zeros(num_classes, jnp.int32)
    return Pool(order, (jnp.cumsum(sizes) - sizes).astype(jnp.int32), counts.astype(jnp.int32), zeros)


def stratified_quotas(key: Array, counts: Array, size: int, *, most: int) -> Array:
    """Split ``size`` over the classes in proportion to ``counts``, rounding without bias.

    Systematic sampling (Madow, Annals of Mathematical Statistics 1949): with ``x_c = size * p_c`` and
    one uniform ``u``, class ``c`` gets ``floor(X_c + u) - floor(X_{c-1} + u)`` where ``X`` is the
    running sum of ``x``; the expectation is ``x_c`` and the error is below 1. The arithmetic is exact
    while ``(size + 1) * most`` fits 31 bits; above, where a subset is a tiny share, it is float32.

    Args:
      key: PRNG key.
      counts: [c], int32, rows of each class; their sum must be at least ``size``.
      size: rows to draw.
      most: static bound on the sum of the counts.

    Returns:
      [c], int32, summing to ``size``, none above its count.

    Example:
      >>> stratified_quotas(jax.random.key(0), jnp.array([30, 10]), 8, most=40).tolist()
      [6, 2]
    """
    running, total = jnp.cumsum(counts), jnp.sum(counts)
    if (size + 1) * most < 2**31:
        edges = (size * running + jax.random.randint(key, (), 0, total)) // total
    else:
        edges = jnp.floor(size * (running / total) + jax.random.uniform(key)).astype(jnp.int32)
        # Undo what rounding broke: enough left for the later classes, and no class above its count.
        edges = jnp.clip(edges, size - (total - running), jnp.minimum(running, size))
        edges = running - jax.lax.cummax(running - edges)
    return jnp.diff(edges, prepend=0)


def draw_subsets(key: Array, pool: Pool, num_subsets: int, size: int) -> tuple[Pool, Array]:
    """Draw random subsets, stratified by class in proportion to the class sizes in play.

    Args:
      key: PRNG key, for the rounding of the class quotas.
      pool: rows in play, at least ``size`` of them.
      num_subsets: static number of subsets ``P``.
      size: static size ``r`` of a subset.

    Returns:
      The pool with its cursors moved on, and rows [P, r], int32, grouped by class. No row repeats
      within a subset.

    Example:
      >>> pool = shuffle_pool(jax.random.key(0), jnp.arange(8) % 2, jnp.ones(8, bool), 2)
      >>> _, rows = draw_subsets(jax.random.key(1), pool, 2, 4)
      >>> sorted(rows.ravel().tolist())
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    keys = jax.random.split(key, num_subsets)
    most = pool.order.shape[0]
    quotas = jax.vmap(lambda k: stratified_quotas(k, pool.counts, size, most=most))(keys)
    before = pool.cursors[None, :] + jnp.cumsum(quotas, axis=0) - quotas

    def rows_of(quota: Array, cursor: Array) -> Array:
        ends = jnp.cumsum(quota)
        slots = jnp.arange(size, dtype=jnp.int32)
        group = jnp.searchsorted(ends, slots, side="right").astype(jnp.int32)
        offset = slots - (ends - quota)[group]
        return pool.order[pool.starts[group] + (cursor[group] + offset) % pool.counts[group]]

    rows = jax.vmap(rows_of)(quotas, before)
    return pool._replace(cursors=pool.cursors + jnp.sum(quotas, axis=0)), rows


class RowStream(NamedTuple):
    """A pool with its random key, reshuffled after every pass over the rows in play."""

    key: Array
    pool: Pool
    in_play: int  # rows in play
    drawn: int  # rows drawn since the last shuffle


Active = Callable[[Array], Array]
"""Key -> the rows in play in the coming pass, [n], bool."""


def open_stream(key: Array, classes: Array, active: Active, num_classes: int) -> RowStream:
    """Return a stream of random subsets of the rows in play; see ``shuffle_pool``.

    Example:
      >>> open_stream(jax.random.key(0), jnp.arange(4) % 2, lambda key: jnp.ones(4, bool), 2).in_play
      4
    """
    key, shuffle_key, active_key = jax.random.split(key, 3)
    pool = _shuffle(shuffle_key, classes, active(active_key), num_classes)
    return RowStream(key, pool, int(jnp.sum(pool.counts)), 0)


def next_subset(
    stream: RowStream, classes: Array, active: Active, size: int
) -> tuple[RowStream, Array]:
    """Draw rows [size] from a stream, opening it anew first when a pass has ended.

    ``classes`` [n] and ``active`` are those that the stream was opened with.

    Example:
      >>> classes, active = jnp.arange(4) % 2, lambda key: jnp.ones(4, bool)
      >>> stream = open_stream(jax.random.key(0), classes, active, 2)
      >>> sorted(next_subset(stream, classes, active, 4)[1].tolist())
      [0, 1, 2, 3]
    """
    if stream.drawn >= stream.in_play:
        stream = open_stream(stream.key, classes, active, stream.pool.counts.shape[0])
    key, pool, rows = _draw(stream.key, stream.pool, size)
    return RowStream(key, pool, stream.in_play, stream.drawn + size), rows


_shuffle = partial(jax.jit, static_argnames="num_classes")(shuffle_pool)


@partial(jax.jit, static_argnames="size")
def _draw(key: Array, pool: Pool, size: int) -> tuple[Array, Pool, Array]:
    key, draw_key = jax.random.split(key)
    pool, rows = draw_subsets(draw_key, pool, 1, size)
    return key, pool, rows[0]


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
