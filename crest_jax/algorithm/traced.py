"""Steps of CREST inside a program: mini-batches are random, held coresets, or chosen just then."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.algorithm.compiled import Form, Problem, score_and_select
from crest_jax.algorithm.crest import between, chooses
from crest_jax.algorithm.parts import Parts
from crest_jax.algorithm.scoring import form_of
from crest_jax.algorithm.state import CrestState, count_work
from crest_jax.data import inside, pool
from crest_jax.data.chunks import ALWAYS, hashable, waits_for_host
from crest_jax.data.inside import Drawing, Drawn
from crest_jax.types import Array, Batch, Examples, ModelState, Params, Traced


class _Random(NamedTuple):
    arrays: Examples
    drawing: Drawing


class _Held(NamedTuple):
    arrays: Examples
    indices: Array
    weights: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("arrays", "drawing", "classes", "key"),
    meta_fields=("form",),
)
@dataclasses.dataclass(frozen=True)
class _Fresh:
    arrays: Examples
    drawing: Drawing
    classes: Array
    key: Array | None
    form: Form


class _Chosen(NamedTuple):
    drawn: Drawn
    held: tuple[Array, Array]  # the last coreset, indices and weights [1, m]
    all_finite: Array
    evenness: Array


@dataclasses.dataclass(frozen=True)
class _Inside:
    problem: Problem
    gather: Any

    def next_batch(
        self, fixed: Any, changing: Any, params: Params, model_state: ModelState
    ) -> tuple[Any, Batch]:
        config = self.problem.config
        if isinstance(fixed, _Random):
            given = config.exclusion, fixed.drawing, changing, config.batch_size
            changing, rows, weights = inside.draw_inside(*given)
        elif isinstance(fixed, _Held):
            rows, weights, changing = fixed.indices[changing], fixed.weights[changing], changing + 1
        else:
            changing = self._choose(fixed, changing, params, model_state)
            rows, weights = (x[0] for x in changing.held)
        examples = self.gather(fixed.arrays, rows)
        return changing, Batch(examples.inputs, examples.labels, weights, rows)

    def _choose(
        self, fixed: _Fresh, before: _Chosen, params: Params, model_state: ModelState
    ) -> _Chosen:
        """Draw a subset, score it, and choose a coreset, as ``scoring.add_coresets`` does."""
        config, drawing = self.problem.config, fixed.drawing
        given = config.exclusion, drawing, before.drawn, config.subset_size
        drawn, rows, _ = inside.draw_inside(*given)
        held, noted, finite, even = score_and_select(
            self.problem,
            params,
            model_state,
            self.gather(fixed.arrays, rows),
            rows[None],
            fixed.classes,
            before.held,
            jnp.zeros(1, jnp.int32),
            drawing.exclusion._replace(**drawn.noted._asdict()),
            before.all_finite,
            fixed.key,
            fixed.form,
        )
        assert even is not None
        return _Chosen(drawn._replace(noted=noted), held, finite, even)

    def observe(self, fixed: Any, changing: Any, batch: Batch, losses: Array) -> Any:
        own = self.problem.config.exclusion
        if own is None or not isinstance(fixed, _Random):
            return changing
        return inside.observe_inside(own, changing, batch.indices, losses)


def traced(parts: Parts) -> Traced | None:
    """Return the ``traced`` of CREST; None where the data lie on the host."""
    if waits_for_host(parts.source):
        return None
    source: Any = parts.source
    steps = hashable(_Inside(parts.problem, source.gather))
    return Traced(
        partial(between, parts),
        partial(_quiet, parts),
        partial(_open, parts),
        steps,
        partial(_close, parts),
    )


def _quiet(parts: Parts, state: CrestState) -> int:
    """Return the steps before the next check, window's end or choice, or the end of the span."""
    config, step = parts.config, state.step
    if not config.selects(step):
        begins = max(0, (config.select_from or 0) - step) or ALWAYS
        return min(begins, pool.quiet(parts.rules, state.pool, step))
    left = min(state.next_check, config.select_until or ALWAYS) - step
    if not chooses(parts, state):
        left = min(left, state.paused_until - step)
    if config.region is None:
        return min(left, pool.quiet(parts.rules, state.pool, step))
    return max(1, min(left, state.buffer.num_coresets - state.buffer.num_used))


def _open(parts: Parts, state: CrestState) -> tuple[Any, Any]:
    config, buffer = parts.config, state.buffer
    source: Any = parts.source
    if config.selects(state.step) and config.region is not None:
        held = _Held(source.arrays, buffer.indices, buffer.weights)
        return held, np.int32(buffer.num_used)
    drawing, drawn = inside.opened(parts.rules, state.pool)
    if not chooses(parts, state):
        return _Random(source.arrays, drawing), drawn
    key = state.key if parts.draws_picks else None
    assert state.evenness is not None
    fresh = _Fresh(source.arrays, drawing, parts.classes, key, form_of(parts, state))
    return fresh, _Chosen(drawn, (buffer.indices, buffer.weights), state.all_finite, state.evenness)


def _close(parts: Parts, state: CrestState, changing: Any, k: int) -> CrestState:
    config, buffer = parts.config, state.buffer
    after = state._replace(step=state.step + k)
    if isinstance(changing, Drawn):
        return after._replace(pool=inside.closed(state.pool, changing))
    if not isinstance(changing, _Chosen):
        return after._replace(buffer=buffer._replace(num_used=buffer.num_used + k))
    scored = k * config.subset_size
    passes = scored * parts.backward_passes
    after = count_work(after, selection_forward=scored, selection_backward=passes)
    return after._replace(
        num_selected=state.num_selected + k,
        all_finite=changing.all_finite,
        evenness=changing.evenness,
        pool=inside.closed(state.pool, changing.drawn),
        buffer=buffer._replace(
            indices=changing.held[0], weights=changing.held[1], num_coresets=1, num_used=1
        ),
    )
