"""Random subsets, scored, and a mini-batch coreset from each: on one device or several."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.algorithm.compiled import Form
from crest_jax.algorithm.parts import Model, Parts
from crest_jax.algorithm.state import CrestState, count_work
from crest_jax.coresets.mini_batch import class_side, most_rounds
from crest_jax.data import pool
from crest_jax.data.chunks import chunk_length
from crest_jax.data.devices import share_of_memory
from crest_jax.types import Array


def add_coresets(parts: Parts, state: CrestState, model: Model, number: int) -> CrestState:
    """Draw random subsets V_p and append a mini-batch coreset S_p of each to the buffer.

    On an accelerator many subsets are one program; on a CPU each is, for classes apart from each other
    take less time there, but not several subsets at once. Several devices share out the rows of one
    subset; of more they score equally many each, and the first fills the last turn of all of them.
    """
    config = parts.config
    form = form_of(parts, state)
    turns, state = _drawn(parts, state, number, config.most_coresets if form.memory else 1)
    parts.ahead.fetch(turns[0][1])
    first = state.buffer.num_coresets
    for turn, (indices, flat, real) in enumerate(turns):
        if turn + 1 < len(turns):
            parts.ahead.fetch(turns[turn + 1][1])
        buffer, exclusion = state.buffer, state.pool.exclusion
        places = np.arange(indices.shape[0], dtype=np.int32)
        slots = np.where(places < real, first + places, config.most_coresets).astype(np.int32)
        held, noted, finite, even = parts.compiled.score_and_select(
            *model,
            parts.source.take(flat),
            indices,
            parts.classes,
            (buffer.indices, buffer.weights),
            slots,
            exclusion,
            state.all_finite,
            state.key if parts.draws_picks else None,
            form=form,
        )
        first += real
        seen = exclusion._replace(**noted._asdict())
        state = state._replace(
            buffer=buffer._replace(indices=held[0], weights=held[1]),
            pool=state.pool._replace(exclusion=seen),
            all_finite=finite,
            evenness=even,
        )
    scored, passes = number * config.subset_size, parts.backward_passes
    state = count_work(state, selection_forward=scored, selection_backward=scored * passes)
    return state._replace(
        buffer=state.buffer._replace(num_coresets=first), num_selected=state.num_selected + number
    )


def _drawn(
    parts: Parts, state: CrestState, number: int, most: int
) -> tuple[list[tuple[Array, Array, int]], CrestState]:
    """Draw subsets for each turn, at most ``most`` a device; one alone is for all devices.

    Returns for each turn indices [g, r], the same [g * r], and how many of them do not just fill.
    """
    size, devices = parts.config.subset_size, parts.devices
    turns: list[tuple[Array, Array, int]] = []
    while number:
        each = chunk_length(max(1, min(most, number // devices)))
        real = min(number, each * devices)
        own, drawn, _ = pool.draw_many(parts.rules, state.pool, size, real)
        state, number = state._replace(pool=own), number - real
        filler = turns[0][0] if turns else drawn
        turns.append((*_filled(drawn, filler[0], 1 if real == 1 else each * devices), real))
    return turns, state


def form_of(parts: Parts, state: CrestState) -> Form:
    """Return how subsets are scored where the state lies."""
    config, classes = parts.config, parts.num_classes
    memory = share_of_memory(state.key)
    if memory is None:
        return Form(classes, 0, class_side(parts.largest_share, config.subset_size), None)
    # On an H100, with its many small kernels, classes apart take three times as long as all pairs.
    rounds = config.batch_size  # of a subset that is not stratified any class may get all
    if config.stratified and not config.by_class:
        sizes = config.subset_size, config.batch_size, classes
        rounds = most_rounds(state.pool.largest_share, *sizes)
    return Form(classes, memory, None, rounds)


@partial(jax.jit, static_argnames="number")
def _filled(drawn: Array, filler: Array, number: int) -> tuple[Array, Array]:
    """Append ``filler`` [r] to indices [g, r] until they are [number, r]; return them flat, too."""
    more = jnp.broadcast_to(filler, (number - drawn.shape[0], filler.shape[0]))
    found = jnp.concatenate([drawn, more])
    return found, found.reshape(-1)
