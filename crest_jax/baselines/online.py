"""Online batch selection: the highest losses of a large random batch."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.data.chunks import ALWAYS, waits_for_host
from crest_jax.data.classes import classes_in
from crest_jax.data.devices import place
from crest_jax.data.sampler import RowStream, next_subset, open_stream
from crest_jax.data.sources import Gather
from crest_jax.data.strata import Strata, make_strata
from crest_jax.gradients.losses import cross_entropy, fitting, per_example
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    BatchSelector,
    Examples,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    Source,
    Traced,
    Work,
    untimed,
)


@jax.jit
def _handed_out(rows: Array) -> tuple[Array, Array]:
    """Return weights [m] of 1 and a copy of rows [m], since a mini-batch may be donated."""
    return jnp.ones(rows.shape, jnp.float32), jnp.copy(rows)


@dataclasses.dataclass(frozen=True)
class _Highest:
    apply_fn: ApplyFn
    loss_fn: LossFn
    size: int

    def __call__(
        self, params: Params, model_state: ModelState, examples: Examples, rows: Array
    ) -> Array:
        logits, _ = self.apply_fn(params, model_state, examples.inputs, train=False, rng=None)
        losses = per_example(self.loss_fn, logits, examples.labels)
        return rows[jax.lax.top_k(losses, self.size)[1]]


@partial(jax.jit, static_argnames="highest")
def _highest(
    highest: _Highest, params: Params, model_state: ModelState, examples: Examples, rows: Array
) -> Array:
    return highest(params, model_state, examples, rows)


@dataclasses.dataclass(frozen=True)
class _Inside:
    gather: Gather
    highest: _Highest
    pool_size: int

    def next_batch(
        self,
        fixed: tuple[Any, Strata],
        changing: tuple[RowStream, Array],
        params: Params,
        model_state: ModelState,
    ) -> tuple[tuple[RowStream, Array], Batch]:
        arrays, strata = fixed
        stream, rows = next_subset(changing[0], strata, self.pool_size)
        picked = self.highest(params, model_state, self.gather(arrays, rows), rows)
        ones = jnp.ones(picked.shape, jnp.float32)
        return (stream, picked), Batch(*self.gather(arrays, picked), ones, picked)

    def observe(self, fixed: Any, changing: Any, batch: Batch, losses: Array) -> Any:
        del fixed, batch, losses
        return changing


class TopLossState(NamedTuple):
    """The state of ``top_loss_batches``.

    Attributes:
      step: batches handed out.
      chosen: batches chosen.
      work: examples passed through the model, beside the training steps.
      stream: where the walk through the examples has come to.
      rows: [m], int32, the next batch.
    """

    step: int
    chosen: int
    work: Work
    stream: RowStream
    rows: Array


def top_loss_batches(
    apply_fn: ApplyFn,
    source: Source,
    batch_size: int,
    pool_size: int,
    *,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on the examples of highest loss in each large random batch.

    Online batch selection (Loshchilov and Hutter, ICLR 2016 workshop; Kawaguchi and Lu, Ordered SGD,
    AISTATS 2020): before each step ``pool_size`` examples are drawn, stratified by class, and the
    ``batch_size`` with the highest losses are trained on.

    Args:
      apply_fn: the model; called in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      pool_size: examples drawn for it, at least ``batch_size`` and at most ``len(source)``.
      loss_fn: per-example losses.
      phase: runs ``"selection"``.

    Raises:
      ValueError: when the sizes are out of range; from ``refresh``, when a label has no logit or
        ``loss_fn`` returns not one loss for each example.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.sources import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.diag([1.0, 2.0, 3.0, 4.0]), np.zeros(4, int))
      >>> selection = top_loss_batches(linear, source, 2, 4)
      >>> params = jnp.array([[0.0, 1.0]] * 4)
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), params, {}), params, {})
      >>> sorted(selection.next_batch(state)[1].indices.tolist())
      [2, 3]
    """
    count = _checks.rows_in(source)
    _checks.apply_function(apply_fn)
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("pool_size", pool_size)
    _checks.require(
        batch_size <= pool_size <= count,
        f"pool_size is {pool_size} but must lie between batch_size, {batch_size}, and the number of "
        f"examples, {count}; choose a size there.",
    )
    mesh, groups = getattr(source, "mesh", None), classes_in(source)
    strata = make_strata(groups.codes, groups.number, mesh=mesh)

    highest = _Highest(apply_fn, fitting(loss_fn, source), batch_size)
    held: Any = source

    def init(key: Array, params: Params, model_state: ModelState) -> TopLossState:
        del params, model_state
        stream, rows = open_stream(key, groups.number), jnp.zeros(batch_size, jnp.int32)
        return TopLossState(0, 0, Work(), place(stream, mesh), place(rows, mesh))

    def select(state: TopLossState, params: Params, model_state: ModelState) -> TopLossState:
        stream, rows = next_subset(state.stream, strata, pool_size)
        picked = _highest(highest, params, model_state, source.take(rows), rows)
        work = state.work._replace(selection_forward=state.work.selection_forward + pool_size)
        return state._replace(chosen=state.chosen + 1, stream=stream, rows=picked, work=work)

    def refresh(
        state: TopLossState, params: Params, model_state: ModelState
    ) -> tuple[TopLossState, None]:
        if state.chosen > state.step:
            return state, None
        return phase("selection", select, state, params, model_state), None

    def next_batch(state: TopLossState) -> tuple[TopLossState, Batch]:
        _checks.require(
            state.chosen > state.step,
            f"next_batch was called at step {state.step} with no batch chosen but needs one; call "
            "refresh before every next_batch.",
        )
        batch = Batch(*source.take(state.rows), *_handed_out(state.rows))
        return state._replace(step=state.step + 1), batch

    def closed(state: TopLossState, changing: tuple[RowStream, Array], k: int) -> TopLossState:
        scored = state.work.selection_forward + k * pool_size
        work, step = state.work._replace(selection_forward=scored), state.step + k
        return TopLossState(step, step, work, *changing)

    traced = None
    if not waits_for_host(source):
        traced = Traced(
            lambda state, params, model_state: (state, None),
            lambda state: ALWAYS,
            lambda state: ((held.arrays, strata), (state.stream, state.rows)),
            _Inside(held.gather, highest, pool_size),
            closed,
        )
    return BatchSelector(init, refresh, next_batch, traced=traced)
