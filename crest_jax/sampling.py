"""The baselines: random mini-batches, plain or stratified by class, of all or of unlearned examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.devices import place
from crest_jax.exclusion import (
    Exclusion,
    end_window,
    init_exclusion,
    observe_losses,
    rows_needed,
    stands_for,
    take_all_back,
    turn_over,
)
from crest_jax.streams import Lookahead, RowStream, make_strata, open_stream
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
    return _batches(source, batch_size, np.zeros(len(source), np.uint8), 1)


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
    return _batches(source, batch_size, source.labels, source.num_classes)


class UnlearnedState(NamedTuple):
    """The state of ``unlearned_batches``."""

    step: int  # batches handed out
    window_end: int  # step at which the window closes
    observed: int  # batches whose losses were handed back
    excluded: int  # examples out of play
    key: Array
    stream: RowStream
    exclusion: Exclusion


def unlearned_batches(
    source: Source,
    batch_size: int,
    *,
    below: float = 0.02,
    window: int = 100,
    windows: int | None = 4,
    keep: float = 0.25,
    until: int | None = None,
    stratified: bool = True,
) -> Selection:
    """Choose random mini-batches that hold few of the examples already learned, at no cost.

    CREST's exclusion alone (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4): nothing is scored.
    The losses are those of the training steps, which the loop hands back through ``observe``
    (``fit(..., losses=...)``). See ``exclusion.close_window`` for who leaves and who returns.

    Args:
      source: the data.
      batch_size: examples in a mini-batch, at most ``len(source)``.
      below: alpha, the loss under which an example counts as learned.
      window: steps of a window.
      windows: windows that a learned example stays out, 1 to 127; None: until its class runs dry.
      keep: share of the learned examples that stay in play with weight ``1 / keep``; 0 leaves them
        out. See ``exclusion.stands_for``.
      until: step from which on batches are of all examples: that of the learning rate's first drop.
        None: exclusion to the end.
      stratified: draw by class, in proportion to the classes in play.

    Raises:
      ValueError: when an argument is out of range; from ``refresh``, at the end of the first window,
        when no losses were handed back.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(4), np.zeros(4, int), 1)
      >>> selection = unlearned_batches(source, 2, window=2, windows=1, keep=0.0)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> for _ in range(2):
      ...     state, batch = selection.next_batch(state)
      ...     state = selection.observe(state, batch, jnp.where(batch.rows < 2, 0.0, 1.0))
      >>> state, _ = selection.refresh(state, None, None)
      >>> sorted(selection.next_batch(state)[1].rows.tolist()), state.excluded
      ([2, 3], 2)
    """
    count = len(source)
    _check_batch(batch_size, count)
    _checks.in_range("below", below, 0.0, 1e6, open_low=True)
    _checks.positive_int("window", window)
    _checks.window_count("windows", windows)
    _checks.in_range("keep", keep, 0.0, 1.0)
    if until is not None:
        _checks.positive_int("until", until)
    labels = source.labels if stratified else np.zeros(count, np.int32)
    num_strata = source.num_classes if stratified else 1
    mesh, ahead = getattr(source, "mesh", None), Lookahead(source)
    strata = make_strata(labels, num_strata, mesh=mesh)
    needed = rows_needed(labels, num_strata, batch_size)

    def init(key: Array, params: Params, model_state: ModelState) -> UnlearnedState:
        del params, model_state
        key, stream_key = jax.random.split(place(key, mesh))
        # Nothing was seen, so this changes nothing, and compiles now what a later window needs.
        capacity = (window + 1) * batch_size
        fresh = init_exclusion(count, num_strata, capacity=capacity, windows=windows)
        exclusion, *_ = end_window(place(fresh, mesh), strata.classes, strata.sizes, needed, windows)
        stream = place(open_stream(stream_key, num_strata), mesh)
        return UnlearnedState(0, window, 0, 0, key, stream, exclusion)

    def refresh(
        state: UnlearnedState, params: Params, model_state: ModelState
    ) -> tuple[UnlearnedState, None]:
        del params, model_state
        if until is not None and state.step >= until:
            over = state.excluded == 0
            return (state if over else take_all_back(state)), None
        if state.step < state.window_end:
            return state, None
        _checks.require(
            state.observed > 0,
            f"no losses were handed back in {state.step} steps but exclusion needs them; call observe "
            "after every step, or pass losses to fit.",
        )
        sizes = strata.sizes
        return turn_over(state, strata.classes, sizes, needed, windows, window), None

    def next_batch(state: UnlearnedState) -> tuple[UnlearnedState, Batch]:
        stream, rows = ahead.next_subset(state.stream, strata, batch_size, state.exclusion, keep)
        weights = stands_for(state.exclusion.rest, rows, keep)
        batch = Batch(*source.take(rows), weights, rows)
        return state._replace(step=state.step + 1, stream=stream), batch

    def look(state: UnlearnedState, batch: Batch, losses: Array) -> UnlearnedState:
        exclusion = observe_losses(state.exclusion, batch.rows, losses, below)
        return state._replace(exclusion=exclusion, observed=state.observed + 1)

    return Selection(init, refresh, next_batch, look)


def _check_batch(batch_size: int, count: int) -> None:
    _checks.positive_int("batch_size", batch_size)
    _checks.require(
        batch_size <= count,
        f"batch_size is {batch_size} but the data hold {count} examples; lower batch_size.",
    )


def _batches(source: Source, batch_size: int, labels: np.ndarray, num_strata: int) -> Selection:
    count = len(source)
    _check_batch(batch_size, count)
    mesh, ahead = getattr(source, "mesh", None), Lookahead(source)
    strata = make_strata(labels, num_strata, mesh=mesh)
    weights = place(jnp.ones(batch_size, jnp.float32), mesh)

    def init(key: Array, params: Params, model_state: ModelState) -> SamplingState:
        del params, model_state
        return SamplingState(0, place(open_stream(key, num_strata), mesh))

    def refresh(state: SamplingState, params: Params, model_state: ModelState) -> tuple[Any, None]:
        del params, model_state
        return state, None

    def next_batch(state: SamplingState) -> tuple[SamplingState, Batch]:
        stream, rows = ahead.next_subset(state.stream, strata, batch_size)
        examples = source.take(rows)
        return SamplingState(state.step + 1, stream), Batch(*examples, weights, rows)

    return Selection(init, refresh, next_batch)
