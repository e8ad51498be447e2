"""Scoring random subsets and selecting a mini-batch coreset from each, on one device or several."""

import numpy as np

from crest_jax.algorithm.compiled import stacked
from crest_jax.algorithm.parts import Model, Parts
from crest_jax.algorithm.state import CrestState, count_work
from crest_jax.types import Array


def score(parts: Parts, state: CrestState, model: Model, drawn: list[Array]) -> CrestState:
    """Select a coreset from each of the subsets drawn, indices [r] each, and append it to the buffer.

    Each device scores a subset of its own; the first subset fills the last turn of all of them.
    """
    config, rules, group, number = parts.config, parts.rules, parts.devices, len(drawn)
    starts = range(0, number, group)
    turns = [stacked((drawn[i : i + group] + drawn[:1] * group)[:group]) for i in starts]
    flat = [indices.ravel() for indices in turns]
    parts.ahead.fetch(flat[0])
    first = state.buffer.num_coresets
    for turn, indices in enumerate(turns):
        if turn + 1 < len(turns):
            parts.ahead.fetch(flat[turn + 1])
        buffer, exclusion = state.buffer, state.pool.exclusion
        slots = first + turn * group + np.arange(group, dtype=np.int32)
        slots = np.where(slots < first + number, slots, config.max_coresets).astype(np.int32)
        held, noted, finite = parts.compiled.score_and_select(
            *model,
            parts.source.take(flat[turn]),
            indices,
            rules.strata.classes,
            (buffer.indices, buffer.weights),
            slots,
            exclusion,
            state.all_finite,
            state.key if config.batch_size < parts.num_classes else None,
            num_classes=parts.num_classes,
        )
        seen = exclusion._replace(**noted._asdict())
        state = state._replace(
            buffer=buffer._replace(indices=held[0], weights=held[1]),
            pool=state.pool._replace(exclusion=seen),
            all_finite=finite,
        )
    scored, passes = number * config.subset_size, parts.backward_passes
    state = count_work(state, selection_forward=scored, selection_backward=scored * passes)
    return state._replace(
        buffer=state.buffer._replace(num_coresets=first + number),
        num_selected=state.num_selected + number,
    )
