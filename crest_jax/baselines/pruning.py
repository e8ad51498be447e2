"""Dynamic pruning: random mini-batches that hold few of the examples already learned."""

from functools import partial
from typing import Any, Literal, NamedTuple

from crest_jax import _checks
from crest_jax.baselines.random import check_batch
from crest_jax.data import pool
from crest_jax.data.chunks import steps_in, take_several, waits_for_host
from crest_jax.data.classes import classes_in, one_class
from crest_jax.data.exclusion import ExclusionConfig
from crest_jax.data.pool import Pool, PoolRules
from crest_jax.data.prefetch import Lookahead
from crest_jax.types import Array, Batch, BatchSelector, ModelState, Params, Source


class DynamicPruningState(NamedTuple):
    """The state of ``dynamic_pruning``.

    Attributes:
      step: batches handed out.
      num_observed: batches whose losses were handed back.
      pool: the examples that may be drawn.
    """

    step: int
    num_observed: int
    pool: Pool

    @property
    def excluded(self) -> int:
        """Number of excluded examples."""
        return self.pool.excluded


class _Parts(NamedTuple):
    source: Source
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
        floating-point numbers [m]; from ``refresh``, at the end of the first window, when no losses
        were handed back.
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
    count = len(source)
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
    return BatchSelector(
        partial(_init, parts),
        partial(_refresh, parts),
        partial(_next_batch, parts),
        partial(_observe, parts),
        partial(_quiet, parts),
        partial(_next_batches, parts),
    )


def _init(parts: _Parts, key: Array, params: Params, model_state: ModelState) -> DynamicPruningState:
    del params, model_state
    _, stream_key = pool.split_key(parts.rules, key)
    return DynamicPruningState(0, 0, pool.open_pool(parts.rules, stream_key))


def _refresh(
    parts: _Parts, state: DynamicPruningState, params: Params, model_state: ModelState
) -> tuple[DynamicPruningState, None]:
    del params, model_state
    over = parts.rules.excludes(state.step) and state.step >= state.pool.window_end
    _checks.require(
        not over or state.num_observed > 0,
        f"no losses were handed back in {state.step} steps but exclusion needs them; call observe "
        "after every step, or pass losses to fit.",
    )
    return state._replace(pool=pool.close(parts.rules, state.pool, state.step)), None


def _next_batch(parts: _Parts, state: DynamicPruningState) -> tuple[DynamicPruningState, Batch]:
    own, indices, weights = pool.draw(parts.rules, state.pool, parts.batch_size, parts.ahead)
    batch = Batch(*parts.source.take(indices), weights, indices)
    return state._replace(step=state.step + 1, pool=own), batch


def _quiet(parts: _Parts, state: DynamicPruningState) -> int:
    return 1 if waits_for_host(parts.source) else pool.quiet(parts.rules, state.pool, state.step)


def _next_batches(
    parts: _Parts, state: DynamicPruningState, k: int
) -> tuple[DynamicPruningState, Batch]:
    own, indices, weights = pool.draw_many(parts.rules, state.pool, parts.batch_size, k)
    batches = take_several(parts.source, indices, weights)
    return state._replace(step=state.step + k, pool=own), batches


def _observe(
    parts: _Parts, state: DynamicPruningState, batch: Batch, losses: Any
) -> DynamicPruningState:
    seen = pool.observe(parts.rules, state.pool, batch.indices, losses)
    return state._replace(pool=seen, num_observed=state.num_observed + steps_in(batch))
