"""Training on one weighted subset of the data, chosen anew every so often."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.data.chunks import draws_in_programs
from crest_jax.data.classes import classes_in
from crest_jax.data.devices import place
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.sampler import RowStream, next_subset, open_stream
from crest_jax.data.strata import Strata, make_strata
from crest_jax.types import (
    Array,
    Batch,
    BatchSelector,
    ModelState,
    Params,
    PhaseFn,
    Source,
    Work,
    untimed,
)

NEVER = 2**31 - 1  # a step that no run reaches, and that a checkpoint of 32-bit numbers holds


class Subset(NamedTuple):
    """What a choice returns.

    Attributes:
      indices: [k], positions in the data set, all different.
      weights: [k], positive.
    """

    indices: Array | np.ndarray
    weights: Array | np.ndarray


# (key, params, model_state) -> the subset to train on
Choose = Callable[[Array, Params, ModelState], Subset]


class SubsetState(NamedTuple):
    """The state of a method that trains on a subset.

    Attributes:
      step: batches handed out.
      next_selection: step before which the subset is chosen anew.
      selected: subsets chosen so far.
      work: examples passed through the model so far, beside the training steps.
      key: PRNG key.
      strata: rows of the subset, by class.
      weights: [n], float32, 0 outside the subset.
      stream: where the walk through the subset has come to.
    """

    step: int
    next_selection: int
    selected: int
    work: Work
    key: Array
    strata: Strata
    weights: Array
    stream: RowStream


class SubsetEvent(NamedTuple):
    """A choice; all fields are Python values.

    Attributes:
      step: batches handed out before.
      reason: "start" or "interval".
      selected: subsets chosen so far.
      weight_spread: standard deviation of the weights over their mean.
      work: examples passed through the model so far, beside the training steps.
    """

    step: int
    reason: str
    selected: int
    weight_spread: float
    work: Work


def subset_batches(
    source: Source,
    batch_size: int,
    size: int,
    choose: Choose,
    *,
    every: int | None = None,
    work: Work | None = None,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on mini-batches of one weighted subset of ``size`` examples.

    Mini-batches are drawn as by ``stratified_batches``, out of the subset: each class gets its share of
    the subset in every batch, and every example comes once per pass. Stratified batches are less noisy
    than the plain ones of the papers and cost nothing, so all get them.

    Args:
      source: the data.
      batch_size: examples in a mini-batch, at most ``size``.
      size: examples in the subset, at most ``len(source)``.
      choose: chooses the subset; see the other files of this folder.
      every: steps after which the subset is chosen anew; None: chosen once, before the first step.
      work: examples that each choice passes through the model.
      phase: runs ``"selection"``; a script passes a timer.

    Returns:
      A ``BatchSelector`` whose state is a ``SubsetState`` and whose events are ``SubsetEvent``.

    Raises:
      ValueError: when the sizes are out of range or ``every`` is below 1; on ``refresh``, when a choice
        has not ``size`` different rows or a weight that is not positive.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(6), np.arange(6) % 2)
      >>> first = lambda key, params, model_state: Subset(np.arange(4), np.ones(4))
      >>> selection = subset_batches(source, 2, 4, first)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> state, event = selection.refresh(state, None, None)
      >>> state, batch = selection.next_batch(state)
      >>> event.reason, bool(batch.indices.max() < 4)
      ('start', True)
    """
    groups, count = classes_in(source), len(source)
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("size", size)
    _checks.require(
        batch_size <= size <= count,
        f"size is {size} but must lie between batch_size, {batch_size}, and the number of examples, "
        f"{count}; choose a size there.",
    )
    if every is not None:
        _checks.positive_int("every", every)
    work = Work() if work is None else work
    mesh, ahead = getattr(source, "mesh", None), Lookahead(source)

    def init(key: Array, params: Params, model_state: ModelState) -> SubsetState:
        del params, model_state
        key, stream_key = jax.random.split(place(_checks.prng_key("key", key), mesh))
        # Rows that the first choice replaces, so that shapes never change.
        strata = make_strata(groups.codes, groups.number, np.arange(size), mesh)
        weights = place(jnp.zeros(count, jnp.float32), mesh)
        stream = place(open_stream(stream_key, groups.number), mesh)
        return SubsetState(0, 0, 0, Work(), key, strata, weights, stream)

    def select(
        state: SubsetState, params: Params, model_state: ModelState
    ) -> tuple[SubsetState, float]:
        key, choice_key, stream_key = jax.random.split(state.key, 3)
        found = choose(choice_key, params, model_state)
        rows, weights = np.asarray(found.indices), np.asarray(found.weights, np.float64)
        _check_subset(rows, weights, size, count)
        full = np.zeros(count, np.float32)
        full[rows] = weights
        return state._replace(
            next_selection=NEVER if every is None else state.step + every,
            selected=state.selected + 1,
            work=Work(*(have + more for have, more in zip(state.work, work, strict=True))),
            key=key,
            strata=make_strata(groups.codes, groups.number, rows, mesh),
            weights=place(jnp.asarray(full), mesh),
            stream=place(open_stream(stream_key, groups.number), mesh),
        ), float(weights.std() / weights.mean())

    def refresh(
        state: SubsetState, params: Params, model_state: ModelState
    ) -> tuple[SubsetState, SubsetEvent | None]:
        if state.step < state.next_selection:
            return state, None
        reason = "start" if state.selected == 0 else "interval"
        state, spread = phase("selection", select, state, params, model_state)
        return state, SubsetEvent(state.step, reason, state.selected, spread, state.work)

    def next_batch(state: SubsetState) -> tuple[SubsetState, Batch]:
        drawn = ahead.draw(_weighted, state.stream, state.strata, state.weights, batch_size)
        stream, rows, weights = drawn
        batch = Batch(*source.take(rows), weights, rows)
        return state._replace(step=state.step + 1, stream=stream), batch

    traced = draws_in_programs(source, _weighted, batch_size, _arrays, refresh=refresh, quiet=_quiet)
    return BatchSelector(init, refresh, next_batch, traced=traced)


def _quiet(state: SubsetState) -> int:
    return state.next_selection - state.step


def _arrays(state: SubsetState) -> tuple[Strata, Array]:
    return state.strata, state.weights


@partial(jax.jit, static_argnames="size")
def _weighted(
    stream: RowStream, strata: Strata, weights: Array, size: int
) -> tuple[RowStream, Array, Array]:
    stream, rows = next_subset(stream, strata, size)
    return stream, rows, weights[rows]


def _check_subset(rows: np.ndarray, weights: np.ndarray, size: int, count: int) -> None:
    different = len(np.unique(rows))
    _checks.require(
        rows.shape == (size,) and different == size and rows.min() >= 0 and rows.max() < count,
        f"a choice returned {different} different rows in shape {rows.shape} but must return {size} in "
        f"[0, {count}); mend the function that chooses.",
    )
    _checks.require(
        weights.shape == (size,) and bool(np.isfinite(weights).all()) and bool((weights > 0).all()),
        f"a choice returned weights of shape {weights.shape}, the least {weights.min()}, but all "
        f"{size} must be finite and positive; lower the learning rate or mend the function.",
    )


def fixed_subset(
    source: Source, batch_size: int, size: int, *, phase: PhaseFn = untimed
) -> BatchSelector:
    """Train on one random subset, stratified by class, chosen before the first step.

    Args:
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the subset.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> selection = fixed_subset(ArraySource(np.eye(6), np.arange(6) % 2), 2, 4)
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), None, None), None, None)
      >>> len(set(state.strata.members.tolist()))
      4
    """
    groups = classes_in(source)
    strata = make_strata(groups.codes, groups.number)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        del params, model_state
        rows = next_subset(open_stream(key, groups.number), strata, size)[1]
        return Subset(rows, np.ones(size))

    return subset_batches(source, batch_size, size, choose, phase=phase)
