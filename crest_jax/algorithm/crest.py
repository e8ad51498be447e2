"""CREST: Algorithm 1 of Yang, Kang and Mirzasoleiman (ICML 2023), as pure functions of a state.

"Towards Sustainable Learning: Coresets for Data-efficient Deep Learning". Every function takes first
the ``Parts``, which never change in a run, and returns a new state; the symbols are those of the paper.
While a network trains, arrays are turned into Python numbers here, when a region begins or a check is
due, every ``LOOK_EVERY`` steps without regions, and in ``pool.close``, when a window ends. A source
on the host also reads which examples to take.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.algorithm.fitting import check_model, fit_model, measure_loss
from crest_jax.algorithm.nonfinite import begin_finite, stop_if_bad_scores, stop_if_not_finite
from crest_jax.algorithm.parts import Model, Parts
from crest_jax.algorithm.regions import check_interval, empty_region
from crest_jax.algorithm.scoring import add_coresets
from crest_jax.algorithm.state import CrestState, Event, Reason, empty_buffer, event_of
from crest_jax.data import pool
from crest_jax.data.devices import copied, place, read_numbers
from crest_jax.gradients.curvature import covered, init_moments
from crest_jax.types import Array, Batch, ModelState, Params, Work

LOOK_EVERY = 32  # steps after which scores are looked at, without regions; also those of a pause


def init(parts: Parts, key: Array, params: Params, model_state: ModelState) -> CrestState:
    """Return the state before the first step."""
    config, rules, own = parts.config, parts.rules, parts.config.region
    stream_key, key = pool.split_key(rules, key)
    moments = region = None
    if own is not None:
        part = covered(params, own.curvature_of)
        held = part if own.curvature == "diagonal" else None
        moments = init_moments(params, part, smoothing=own.smoothing)
        region = empty_region(copied(params), copied(model_state), held, own.probe_size)
    state = CrestState(
        step=0,
        interval=1 if own is None else 0,
        next_check=0,
        paused_until=0,
        num_regions=0,
        num_selected=0,
        num_unused=0,
        reference_norm=math.nan,
        curvature_norm=math.nan,
        work=Work(),
        all_finite=jnp.ones((), bool),
        evenness=jnp.zeros((), jnp.float32) if own is None else None,
        key=key,
        pool=pool.open_pool(rules, stream_key),
        buffer=empty_buffer(config.most_coresets, config.batch_size),
        moments=moments,
        region=region,
    )
    return place(state, rules.mesh)


def refresh(
    parts: Parts, state: CrestState, params: Params, model_state: ModelState
) -> tuple[CrestState, Event | None]:
    """Do what is due before a step, and choose its coreset where coresets are chosen at every step."""
    state, event = between(parts, state, params, model_state)
    config, buffer = parts.config, state.buffer
    if config.region is None and chooses(parts, state) and buffer.empty:
        model, state = Model(params, model_state), state._replace(buffer=buffer.discard())
        state = parts.phase("selection", add_coresets, parts, state, model, 1)
    return state, event


def chooses(parts: Parts, state: CrestState) -> bool:
    """Return whether the next mini-batch is a coreset."""
    return parts.config.selects(state.step) and state.step >= state.paused_until


def between(
    parts: Parts, state: CrestState, params: Params, model_state: ModelState
) -> tuple[CrestState, Event | None]:
    """Do what is due on the host before a step, or before a program that takes several."""
    if not parts.config.selects(state.step):
        return _between_random(parts, state)
    if parts.config.region is None:
        return _between_fresh(parts, state)
    return _in_regions(parts, state, Model(params, model_state))


def _in_regions(parts: Parts, state: CrestState, model: Model) -> tuple[CrestState, Event | None]:
    """Check the region when that is due, begin another where it fails, add coresets where none is left.

    The loop of Algorithm 1 over regions: whether ``rho`` exceeds ``tau`` is looked at every T1 steps.
    """
    due, empty = state.step >= state.next_check, state.buffer.empty
    if not (due or empty):
        return state, None
    before, finite = state.num_selected, True
    reason: Reason = "kept" if state.num_regions else "start"
    rho = unchanged = loss = None
    if due:
        state = close_window(parts, state)
    if due and reason == "kept":
        found = parts.phase("check", check_model, parts, state, model)
        state, (loss, rho, unchanged, finite) = found
        if parts.rules.skip_nonfinite and not (finite and math.isfinite(loss)):
            reason = "nonfinite"
        elif not rho <= parts.region.tau:
            reason = "error"
        else:
            state = state._replace(next_check=state.step + state.interval)
    if reason != "kept":
        begin, mesh = partial(begin_region, parts, model=model), parts.rules.mesh
        state, loss, finite = (
            begin_finite(begin, state, mesh) if parts.rules.skip_nonfinite else begin(state)
        )
    elif empty:
        state = parts.phase("selection", extend, parts, state, model)
    stop_if_not_finite(state, loss, scores=finite or parts.rules.skip_nonfinite)
    added = state.num_selected - before
    return state, event_of(state, reason, rho=rho, rho_unchanged=unchanged, loss=loss, coresets=added)


def begin_region(parts: Parts, state: CrestState, model: Model) -> tuple[CrestState, float, bool]:
    """Take an anchor, its loss, a quadratic model (see ``fit_model``) and P coresets."""
    config, buffer, before = parts.region, state.buffer, state.region
    own, indices, weights = pool.draw(parts.rules, state.pool, config.probe_size)
    assert before is not None
    region = before._replace(
        anchor=copied(model.params),
        model_state=copied(model.state),
        probe_indices=indices,
        probe_weights=weights,
    )
    state = state._replace(
        num_unused=state.num_unused + buffer.num_coresets - buffer.num_used,
        buffer=buffer.discard(),
        pool=own,
        region=region,
    )
    state, measured = parts.phase("check", measure_loss, parts, state, model)
    state = state._replace(region=region._replace(loss=measured))
    first = 1
    if config.fitted_on == "coresets":  # P by the length of the region before
        length = state.interval or math.ceil(config.interval_multiplier)
        first = num_coresets(parts, state.step, min(length, config.max_interval))
    state = parts.phase("selection", add_coresets, parts, state, model, first)
    state, loss, finite = parts.phase("curvature", fit_model, parts, state, model)
    interval = check_interval(
        state.reference_norm,
        state.curvature_norm,
        multiplier=config.interval_multiplier,
        maximum=config.max_interval,
    )
    more = num_coresets(parts, state.step, interval) - first
    if more > 0 and config.fitted_on == "probe":
        state = parts.phase("selection", add_coresets, parts, state, model, more)
    return (
        state._replace(
            interval=interval, next_check=state.step + interval, num_regions=state.num_regions + 1
        ),
        loss,
        finite,
    )


def num_coresets(parts: Parts, step: int, interval: int) -> int:
    """Return ``P = b * T1``, no more than fit the buffer and the steps that still select."""
    left = (parts.config.select_until or math.inf) - step
    wanted = min(parts.region.coresets_per_interval * interval, left)
    return min(parts.region.max_coresets, math.ceil(wanted))


def extend(parts: Parts, state: CrestState, model: Model) -> CrestState:
    """Add the coresets of another interval to a region that outlived its own, at the parameters now."""
    left = max(1, state.next_check - state.step)
    number = min(num_coresets(parts, state.step, state.interval), left)
    return add_coresets(parts, state._replace(buffer=state.buffer.discard()), model, number)


def close_window(parts: Parts, state: CrestState) -> CrestState:
    """Exclude the learned examples where a window of T2 steps is over."""
    if not pool.due(parts.rules, state.pool, state.step):
        return state
    closed = parts.phase("selection", pool.close, parts.rules, state.pool, state.step)
    return state._replace(pool=closed)


def next_batch(parts: Parts, state: CrestState) -> tuple[CrestState, Batch]:
    """Hand out the next coreset as a mini-batch, or a random one outside the span."""
    if chooses(parts, state):
        buffer, indices, weights = state.buffer.take(parts.ahead)
        state = state._replace(buffer=buffer)
    else:
        size = parts.config.batch_size
        own, indices, weights = pool.draw(parts.rules, state.pool, size, parts.ahead)
        state = state._replace(pool=own)
    batch = Batch(*parts.source.take(indices), weights, indices)
    return state._replace(step=state.step + 1), batch


def observe(parts: Parts, state: CrestState, batch: Batch, losses: Any) -> CrestState:
    """Note the losses of a random mini-batch; those of subsets are noted when they are scored."""
    losses = _checks.handed_back(losses, batch.indices)  # checked at every step, also where not needed
    if parts.rules.exclusion is None or chooses(parts, state._replace(step=state.step - 1)):
        return state
    return state._replace(pool=pool.observe(parts.rules, state.pool, batch.indices, losses))


def _between_random(parts: Parts, state: CrestState) -> tuple[CrestState, Event | None]:
    before, buffer = state.excluded, state.buffer
    state = close_window(parts, state)
    if buffer.num_coresets > 0:
        if parts.config.region is None:
            _look_at_scores(parts, state)
        unused = state.num_unused + buffer.num_coresets - buffer.num_used
        state = state._replace(num_unused=unused, buffer=buffer.discard())
        return state, event_of(state, "span_end")
    return state, None if state.excluded == before else event_of(state, "window")


def _between_fresh(parts: Parts, state: CrestState) -> tuple[CrestState, Event | None]:
    """Look at the scores where that is due, and pause, or go on, by the evenness of the last ones."""
    first, before, step = state.num_selected == 0, state.excluded, state.step
    state = close_window(parts, state)
    told: Reason | None = None if state.excluded == before else "window"
    even = None
    if first and state.buffer.empty:
        told = "span_start"
    if step >= state.next_check:
        was, pauses, until = 0 < state.paused_until == step - 1, False, step + LOOK_EVERY
        if not first:
            even = _look_at_scores(parts, state)
            pauses = even > parts.config.pause_above
        if pauses != was:
            told = "paused" if pauses else "resumed"
        if pauses:  # a pause ends with one coreset, whose scores say whether another follows
            state = state._replace(paused_until=until)
        state = state._replace(next_check=until + pauses)
    return state, None if told is None else event_of(state, told, evenness=even)


def _look_at_scores(parts: Parts, state: CrestState) -> float:
    assert state.evenness is not None
    finite, even = read_numbers(state.all_finite, state.evenness)
    stop_if_bad_scores(state, finite=finite or parts.rules.skip_nonfinite)
    return float(even)
