"""The baselines: random mini-batches, plain or stratified by class."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.data.chunks import ALWAYS, draws_in_programs
from crest_jax.data.classes import Classes, classes_in, one_class
from crest_jax.data.devices import place
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.sampler import RowStream, next_subset, open_stream
from crest_jax.data.strata import Strata, make_strata
from crest_jax.types import Array, Batch, BatchSelector, ModelState, Params, Source


class SamplingState(NamedTuple):
    """The state of a random method.

    Attributes:
      step: batches handed out.
      stream: where the walk through the examples has come to.
    """

    step: int
    stream: RowStream


def random_batches(source: Source, batch_size: int) -> BatchSelector:
    """Choose uniform random mini-batches, all with weight 1; every example comes in every pass.

    A pass ends when as many rows are drawn as there are examples; its last batch is filled with rows
    from the beginning of the same pass.

    This is plain mini-batch SGD with reshuffling: run for all steps it is full training, run for a
    budget it is the random baseline.

    Args:
      source: the data.
      batch_size: examples in a mini-batch, at most ``len(source)``.

    Raises:
      ValueError: when ``batch_size`` is below 1 or above ``len(source)``.

    Example:
      >>> import jax, numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(4), np.arange(4) % 2)
      >>> selection = random_batches(source, 4)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> sorted(selection.next_batch(state)[1].indices.tolist())
      [0, 1, 2, 3]
    """
    return _batches(source, batch_size, one_class(_checks.rows_in(source)))


def stratified_batches(source: Source, batch_size: int) -> BatchSelector:
    """Choose random mini-batches stratified by class in proportion to the class sizes.

    Each class gets its expected share of every batch, rounded at random without bias.

    Args and errors: see ``random_batches``.

    Example:
      >>> import jax, numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(6), np.arange(6) % 2)
      >>> selection = stratified_batches(source, 4)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> sorted(selection.next_batch(state)[1].labels.tolist())
      [0, 0, 1, 1]
    """
    return _batches(source, batch_size, classes_in(source))


def check_batch(batch_size: int, count: int) -> None:
    """Refuse a mini-batch that ``count`` examples cannot fill."""
    _checks.positive_int("batch_size", batch_size)
    _checks.require(
        batch_size <= count,
        f"batch_size is {batch_size} but the data hold {count} examples; lower batch_size.",
    )


@partial(jax.jit, static_argnames="size")
def _evenly(stream: RowStream, strata: Strata, size: int) -> tuple[RowStream, Array, Array]:
    stream, rows = next_subset(stream, strata, size)
    return stream, rows, jnp.ones(rows.shape, jnp.float32)


def _batches(source: Source, batch_size: int, groups: Classes) -> BatchSelector:
    count = len(source)
    check_batch(batch_size, count)
    mesh, ahead = getattr(source, "mesh", None), Lookahead(source)
    strata = make_strata(groups.codes, groups.number, mesh=mesh)

    def init(key: Array, params: Params, model_state: ModelState) -> SamplingState:
        del params, model_state
        return SamplingState(0, place(open_stream(key, groups.number), mesh))

    def refresh(state: SamplingState, params: Params, model_state: ModelState) -> tuple[Any, None]:
        del params, model_state
        return state, None

    def next_batch(state: SamplingState) -> tuple[SamplingState, Batch]:
        stream, rows, weights = ahead.draw(_evenly, state.stream, strata, batch_size)
        examples = source.take(rows)
        return SamplingState(state.step + 1, stream), Batch(*examples, weights, rows)

    traced = draws_in_programs(
        source,
        _evenly,
        batch_size,
        lambda state: (strata,),
        refresh=refresh,
        quiet=lambda state: ALWAYS,
    )
    return BatchSelector(init, refresh, next_batch, traced=traced)
