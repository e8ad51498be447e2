"""The baselines: random mini-batches, plain or stratified by class."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.data import RowStream, next_subsets, open_stream
from crest_jax.types import Array, Batch, ModelState, Params, Selection, Source


class SamplingState(NamedTuple):
    """The state of a random method."""

    step: int  # batches handed out
    stream: RowStream


def random_batches(source: Source, batch_size: int) -> Selection:
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
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(4), np.arange(4) % 2)
      >>> selection = random_batches(source, 4)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> sorted(selection.next_batch(state)[1].rows.tolist())
      [0, 1, 2, 3]
    """
    return _batches(source, batch_size, jnp.zeros(len(source), jnp.int32), 1)


def stratified_batches(source: Source, batch_size: int) -> Selection:
    """Choose random mini-batches stratified by class in proportion to the class sizes.

    Each class gets its expected share of every batch, rounded at random without bias.

    Args and errors: see ``random_batches``.

    Example:
      >>> import jax, numpy as np
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(6), np.arange(6) % 2)
      >>> selection = stratified_batches(source, 4)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> sorted(selection.next_batch(state)[1].labels.tolist())
      [0, 0, 1, 1]
    """
    return _batches(source, batch_size, jnp.asarray(source.labels, jnp.int32), source.num_classes)


def _batches(source: Source, batch_size: int, strata: Array, num_strata: int) -> Selection:
    count = len(source)
    _checks.positive_int("batch_size", batch_size)
    _checks.require(
        batch_size <= count,
        f"batch_size is {batch_size} but the data hold {count} examples; lower batch_size.",
    )
    active = jnp.ones(count, bool)
    weights = jnp.ones(batch_size, jnp.float32)

    def init(key: Array, params: Params, model_state: ModelState) -> SamplingState:
        del params, model_state
        return SamplingState(0, open_stream(key, strata, active, num_strata))

    def refresh(state: SamplingState, params: Params, model_state: ModelState) -> tuple[Any, None]:
        del params, model_state
        return state, None

    def next_batch(state: SamplingState) -> tuple[SamplingState, Batch]:
        stream, rows = next_subsets(state.stream, strata, active, 1, batch_size)
        examples = source.take(rows[0])
        return SamplingState(state.step + 1, stream), Batch(*examples, weights, rows[0])

    return Selection(init, refresh, next_batch)
