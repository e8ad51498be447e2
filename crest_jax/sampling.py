"""The baselines: random mini-batches, plain or stratified by class, of all or of unlearned examples."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.classes import Classes, classes_of
from crest_jax.devices import place
from crest_jax.exclusion import (
    Exclusion,
    end_window,
    init_exclusion,
    observe_losses,
    rows_needed,
    take_all_back,
    turn_over,
    weighted_subset,
)
from crest_jax.streams import Lookahead, RowStream, Strata, make_strata, next_subset, open_stream
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
    return _batches(source, batch_size, _as_one(len(source)))


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
    return _batches(source, batch_size, classes_of(source.labels))


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
    nonfinite: Literal["stop", "skip"] = "stop",
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
      nonfinite: what a NaN or infinite loss does that is handed back: "stop" raises at the window's
        end, "skip" counts it as not learned, for a training that leaves such steps out.

    Raises:
      ValueError: when an argument is out of range; from ``observe``, when the losses are no
        floating-point numbers [m]; from ``refresh``, at the end of the first window, when no losses
        were handed back.
      FloatingPointError: from ``refresh``, at the end of a window; see ``nonfinite``.

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
    _checks.one_of("nonfinite", nonfinite, ("stop", "skip"))
    groups = classes_of(source.labels) if stratified else _as_one(count)
    mesh, ahead = getattr(source, "mesh", None), Lookahead(source)
    strata = make_strata(groups.codes, groups.number, mesh=mesh)
    needed = rows_needed(groups.codes, groups.number, batch_size)

    def init(key: Array, params: Params, model_state: ModelState) -> UnlearnedState:
        del params, model_state
        key, stream_key = jax.random.split(place(_checks.prng_key("key", key), mesh))
        # Nothing was seen, so this changes nothing, and compiles now what a later window needs.
        capacity = (window + 1) * batch_size
        fresh = init_exclusion(count, groups.number, capacity=capacity, windows=windows)
        exclusion, *_ = end_window(place(fresh, mesh), strata.classes, strata.sizes, needed, windows)
        stream = place(open_stream(stream_key, groups.number), mesh)
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
        classes, sizes, skipping = strata.classes, strata.sizes, nonfinite == "skip"
        return turn_over(state, classes, sizes, needed, windows, window, skipping=skipping), None

    def next_batch(state: UnlearnedState) -> tuple[UnlearnedState, Batch]:
        rest, out = state.exclusion.rest, state.exclusion.out
        drawn = ahead.draw(weighted_subset, state.stream, strata, rest, out, batch_size, keep)
        stream, rows, weights = drawn
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


def _as_one(count: int) -> Classes:
    """All examples in one class."""
    return Classes(np.zeros(count, np.int32), np.zeros(1, np.int32))


@partial(jax.jit, static_argnames="size")
def _evenly(stream: RowStream, strata: Strata, size: int) -> tuple[RowStream, Array, Array]:
    stream, rows = next_subset(stream, strata, size)
    return stream, rows, jnp.ones(rows.shape, jnp.float32)


def _batches(source: Source, batch_size: int, groups: Classes) -> Selection:
    count = len(source)
    _check_batch(batch_size, count)
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

    return Selection(init, refresh, next_batch)
