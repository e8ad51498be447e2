"""Several mini-batches at once, for steps that run as one program."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from crest_jax.data.prefetch import Draw
from crest_jax.data.sampler import RowStream
from crest_jax.data.sources import ArraySource
from crest_jax.types import Array, Batch, Examples, Source

ALWAYS = 2**31 - 1  # more steps than any run has


def chunk_length(most: int) -> int:
    """Return the largest power of two that is at most ``most``, so that few programs are compiled.

    Example:
      >>> chunk_length(1), chunk_length(31), chunk_length(32)
      (1, 16, 32)
    """
    return 1 << (most.bit_length() - 1)


@partial(jax.jit, static_argnames=("draw", "number", "settings"))
def draw_several(
    draw: Draw, number: int, settings: tuple[Any, ...], stream: RowStream, *arrays: Any
) -> tuple[RowStream, Array, Array]:
    """Draw as many times as asked: rows [k, m] and weights [k, m], as ``draw`` gives them one by one.

    Args:
      draw: static, a pure function ``(stream, *arrays, *settings)``.
      number: static, k.
      settings: static, the last arguments of ``draw``.
      stream: where the walk has come to.
      *arrays: its arguments in between.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from crest_jax.data.sampler import next_subset, open_stream
      >>> from crest_jax.data.strata import make_strata
      >>> strata, stream = make_strata(np.zeros(6, int), 1), open_stream(jax.random.key(0), 1)
      >>> def draw(stream, strata, size):
      ...     stream, rows = next_subset(stream, strata, size)
      ...     return stream, rows, jnp.ones(size)
      >>> sorted(draw_several(draw, 3, (2,), stream, strata)[1].ravel().tolist())
      [0, 1, 2, 3, 4, 5]
    """

    def one(stream: RowStream, _: None) -> tuple[RowStream, tuple[Array, Array]]:
        stream, rows, weights = draw(stream, *arrays, *settings)
        return stream, (rows, weights)

    stream, (rows, weights) = jax.lax.scan(one, stream, None, length=number, unroll=min(number, 2))
    return stream, rows, weights


@partial(jax.jit, static_argnames="number")
def rows_from(rows: Array, weights: Array, first: Array, number: int) -> tuple[Array, Array]:
    """Return ``number`` rows of each of two arrays [p, m], from the one at ``first``.

    Example:
      >>> import jax.numpy as jnp
      >>> rows_from(jnp.eye(3), jnp.ones((3, 3)), jnp.int32(1), 2)[0].tolist()
      [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    found = (jax.lax.dynamic_slice_in_dim(x, first, number) for x in (rows, weights))
    return tuple(found)  # type: ignore[return-value]


def take_several(source: Source, rows: Array, weights: Array) -> Batch:
    """Return the mini-batches of rows [k, m], leaves [k, m, ...].

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> rows = jnp.array([[0, 2], [1, 0]])
      >>> take_several(ArraySource(np.eye(3)), rows, jnp.ones((2, 2))).inputs.shape
      (2, 2, 3)
    """
    if isinstance(source, ArraySource):
        return Batch(*source.take(rows), weights, rows)
    flat = source.take(rows.reshape(-1))
    found: Examples = jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), flat)
    return Batch(*found, weights, rows)


def drawn_by(
    source: Source, draw: Draw, size: int, read: Callable[[Any], tuple[Any, ...]]
) -> Callable[[Any, int], tuple[Any, Batch]]:
    """Return the ``next_batches`` of a method whose state has a ``step`` and a ``stream``.

    Args:
      source: the data.
      draw: draws a mini-batch, ``(stream, *arrays, size)``.
      size: examples in a mini-batch.
      read: the arrays of a state that it draws by.

    Example:
      >>> import numpy as np
      >>> from crest_jax import ArraySource, random_batches
      >>> selector = random_batches(ArraySource(np.eye(4)), 2)
      >>> selector.next_batches(selector.init(jax.random.key(0), None, None), 3)[1].inputs.shape
      (3, 2, 4)
    """

    def next_batches(state: Any, k: int) -> tuple[Any, Batch]:
        stream, rows, weights = draw_several(draw, k, (size,), state.stream, *read(state))
        return state._replace(step=state.step + k, stream=stream), take_several(source, rows, weights)

    return next_batches


def waits_for_host(source: Source) -> bool:
    """Return whether every mini-batch of a source is read on the host, in time for its step.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> waits_for_host(ArraySource(np.eye(3)))
      False
    """
    return hasattr(source, "prefetch")


def steps_in(batch: Batch) -> int:
    """Return the number of mini-batches, 1 for one that is not in a chunk.

    Example:
      >>> import jax.numpy as jnp
      >>> steps_in(Batch(None, None, jnp.ones((5, 2)), jnp.ones((5, 2))))
      5
    """
    return 1 if batch.indices.ndim == 1 else len(batch.indices)
