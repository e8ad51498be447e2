"""Several draws, and several steps, in one program."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from crest_jax.data.prefetch import Draw
from crest_jax.data.sampler import RowStream
from crest_jax.data.sources import Gather
from crest_jax.types import Array, Batch, Inside, ModelState, Params, Source, Traced

ALWAYS = 2**31 - 1  # more steps than any run has


def chunk_length(most: int) -> int:
    """Return the largest power of two that is at most ``most``, so that few programs are compiled.

    Example:
      >>> chunk_length(1), chunk_length(31), chunk_length(32)
      (1, 16, 32)
    """
    return 1 << (int(most).bit_length() - 1)


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


@dataclasses.dataclass(frozen=True)
class _Drawing:
    gather: Gather
    draw: Draw
    size: int

    def next_batch(
        self, fixed: Any, changing: RowStream, params: Params, model_state: ModelState
    ) -> tuple[RowStream, Batch]:
        del params, model_state
        arrays, given = fixed
        stream, rows, weights = self.draw(changing, *given, self.size)
        return stream, Batch(*self.gather(arrays, rows), weights, rows)

    def observe(self, fixed: Any, changing: RowStream, batch: Batch, losses: Array) -> RowStream:
        del fixed, batch, losses
        return changing


def draws_in_programs(
    source: Source,
    draw: Draw,
    size: int,
    read: Callable[[Any], tuple[Any, ...]],
    *,
    refresh: Callable[..., tuple[Any, Any]],
    quiet: Callable[[Any], int],
) -> Traced | None:
    """Return the ``traced`` of a method whose state has a ``step`` and a ``stream``.

    Args:
      source: the data.
      draw: draws a mini-batch, ``(stream, *arrays, size)``.
      size: examples in a mini-batch.
      read: the arrays of a state that it draws by.
      refresh: of the method.
      quiet: see ``Traced``.

    Example:
      >>> import numpy as np
      >>> from crest_jax import ArraySource, random_batches
      >>> selector = random_batches(ArraySource(np.eye(4)), 2)
      >>> fixed, changing = selector.traced.open(selector.init(jax.random.key(0), None, None))
      >>> selector.traced.inside.next_batch(fixed, changing, None, None)[1].inputs.shape
      (2, 4)
    """
    if waits_for_host(source):
        return None
    held: Any = source
    return Traced(
        refresh,
        quiet,
        lambda state: ((held.arrays, read(state)), state.stream),
        _Drawing(held.gather, draw, size),
        lambda state, stream, k: state._replace(step=state.step + k, stream=stream),
    )


class _Same:
    """What no value can be compared with but itself, so that ``jit`` takes it as a static argument."""

    def __init__(self, inside: Inside) -> None:
        self.next_batch, self.observe = inside.next_batch, inside.observe


def hashable(inside: Inside) -> Inside:
    """Return a value that ``jit`` can tell from others, also where a model in it is none.

    Example:
      >>> hashable(None) is None
      True
    """
    try:
        hash(inside)
    except TypeError:
        return _Same(inside)
    return inside


def waits_for_host(source: Source) -> bool:
    """Return whether a source cannot be read inside a program, so that each mini-batch needs the host.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> waits_for_host(ArraySource(np.eye(3)))
      False
    """
    return getattr(source, "gather", None) is None
