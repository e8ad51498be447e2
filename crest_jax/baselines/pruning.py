"""Dynamic pruning: random mini-batches that hold few of the examples already learned."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

from crest_jax import _checks
from crest_jax.baselines.random import check_batch
from crest_jax.data import inside, pool
from crest_jax.data.chunks import waits_for_host
from crest_jax.data.classes import classes_in, one_class
from crest_jax.data.devices import read_numbers
from crest_jax.data.exclusion import ExclusionConfig
from crest_jax.data.inside import Drawing, Drawn
from crest_jax.data.pool import Pool, PoolRules
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.sources import Gather
from crest_jax.types import Array, Batch, BatchSelector, Examples, ModelState, Params, Source, Traced


class DynamicPruningState(NamedTuple):
    """The state of ``dynamic_pruning``.

    Attributes:
      step: batches handed out.
      pool: the examples that may be drawn.
    """

    step: int
    pool: Pool

    @property
    def excluded(self) -> int:
        """Number of excluded examples."""
        return self.pool.excluded


class _Parts(NamedTuple):
    source: Any  # a Source
    batch_size: int
    rules: PoolRules
    ahead: Lookahead


def dynamic_pruning(
    source: Source,
    batch_size: int,
    exclusion: ExclusionConfig,
    *,
    stratified: bool = True,
    nonfinite: Literal["stop", "skip"] = "stop",
) -> BatchSelector:
    """Choose random mini-batches that hold few of the examples already learned, at no cost.

    CREST's exclusion alone (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4): nothing is scored.
    The losses are those of the training steps, which the loop hands back through ``observe``
    (``fit(..., losses=...)``). See ``exclusion.close_window`` for who is excluded and who returns.

    Args:
      source: the data.
      batch_size: examples in a mini-batch, at most ``len(source)``.
      exclusion: which examples count as learned, and what becomes of them.
      stratified: draw by class, in proportion to the active examples of each.
      nonfinite: what a NaN or infinite loss does that is handed back: "stop" raises at the window's
        end, "skip" counts it as not learned, for a training that leaves such steps out.

    Raises:
      ValueError: when an argument is out of range; from ``observe``, when the losses are no
        floating-point numbers [m]; from ``refresh``, at the end of a window in which no losses were
        handed back.
      FloatingPointError: from ``refresh``, at the end of a window; see ``nonfinite``.

    Example:
      >>> import jax, numpy as np
      >>> from crest_jax import ArraySource
      >>> source = ArraySource(np.eye(4), np.zeros(4, int))
      >>> own = ExclusionConfig(threshold=0.02, window=2, cooldown=1, keep_fraction=0.0)
      >>> selector = dynamic_pruning(source, 2, own)
      >>> state = selector.init(jax.random.key(0), None, None)
      >>> for _ in range(2):
      ...     state, batch = selector.next_batch(state)
      ...     state = selector.observe(state, batch, np.where(batch.indices < 2, 0.0, 1.0))
      >>> state, _ = selector.refresh(state, None, None)
      >>> sorted(selector.next_batch(state)[1].indices.tolist()), state.excluded
      ([2, 3], 2)
    """
    count = _checks.rows_in(source)
    check_batch(batch_size, count)
    _checks.one_of("nonfinite", nonfinite, ("stop", "skip"))
    rules = pool.make_rules(
        classes_in(source) if stratified else one_class(count),
        largest_draw=batch_size,
        exclusion=exclusion,
        capacity=(exclusion.window + 1) * batch_size,
        skip_nonfinite=nonfinite == "skip",
        mesh=getattr(source, "mesh", None),
    )
    parts = _Parts(source, batch_size, rules, Lookahead(source))
    traced = None
    if not waits_for_host(source):
        traced = Traced(
            partial(_refresh, parts),
            partial(_quiet, parts),
            partial(_opened, parts),
            _Inside(parts.source.gather, batch_size, exclusion),
            _closed,
        )
    return BatchSelector(
        partial(_init, parts),
        partial(_refresh, parts),
        partial(_next_batch, parts),
        partial(_observe, parts),
        traced,
    )


def _init(parts: _Parts, key: Array, params: Params, model_state: ModelState) -> DynamicPruningState:
    del params, model_state
    _, stream_key = pool.split_key(parts.rules, key)
    return DynamicPruningState(0, pool.open_pool(parts.rules, stream_key))


def _refresh(
    parts: _Parts, state: DynamicPruningState, params: Params, model_state: ModelState
) -> tuple[DynamicPruningState, None]:
    del params, model_state
    if parts.rules.excludes(state.step) and state.step >= state.pool.window_end:
        (observed,) = read_numbers(state.pool.exclusion.num_observations)
        _checks.require(
            observed > 0,
            f"no losses were handed back in the window before step {state.step} but exclusion needs "
            "them; call observe after every step, or pass losses to fit.",
        )
    return state._replace(pool=pool.close(parts.rules, state.pool, state.step)), None


def _next_batch(parts: _Parts, state: DynamicPruningState) -> tuple[DynamicPruningState, Batch]:
    own, indices, weights = pool.draw(parts.rules, state.pool, parts.batch_size, parts.ahead)
    examples: Examples = parts.source.take(indices)
    batch = Batch(*examples, weights, indices)
    return state._replace(step=state.step + 1, pool=own), batch


def _quiet(parts: _Parts, state: DynamicPruningState) -> int:
    return pool.quiet(parts.rules, state.pool, state.step)


def _opened(parts: _Parts, state: DynamicPruningState) -> tuple[tuple[Any, Drawing], Drawn]:
    drawing, drawn = inside.opened(parts.rules, state.pool)
    return (parts.source.arrays, drawing), drawn


@dataclasses.dataclass(frozen=True)
class _Inside:
    gather: Gather
    size: int
    exclusion: ExclusionConfig

    def next_batch(
        self,
        fixed: tuple[Any, Drawing],
        changing: Drawn,
        params: Params,
        model_state: ModelState,
    ) -> tuple[Drawn, Batch]:
        del params, model_state
        arrays, drawing = fixed
        drawn, rows, weights = inside.draw_inside(self.exclusion, drawing, changing, self.size)
        examples = self.gather(arrays, rows)
        return drawn, Batch(examples.inputs, examples.labels, weights, rows)

    def observe(self, fixed: Any, changing: Drawn, batch: Batch, losses: Array) -> Drawn:
        del fixed
        return inside.observe_inside(self.exclusion, changing, batch.indices, losses)


def _closed(state: DynamicPruningState, drawn: Drawn, k: int) -> DynamicPruningState:
    return state._replace(step=state.step + k, pool=inside.closed(state.pool, drawn))


def _observe(
    parts: _Parts, state: DynamicPruningState, batch: Batch, losses: Any
) -> DynamicPruningState:
    seen = pool.observe(parts.rules, state.pool, batch.indices, losses)
    return state._replace(pool=seen)
