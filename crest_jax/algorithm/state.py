"""What CREST remembers between steps, and what it tells."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.algorithm.regions import Region
from crest_jax.data.pool import Pool
from crest_jax.data.prefetch import Lookahead
from crest_jax.gradients.curvature import Moments
from crest_jax.types import Array, Work

Reason = Literal[
    "start", "error", "nonfinite", "kept", "span_start", "span_end", "paused", "resumed", "window"
]


class CoresetBuffer(NamedTuple):
    """The mini-batch coresets that wait for their steps.

    Attributes:
      indices: [max_coresets, m], int32, positions in the data set.
      weights: [max_coresets, m], float32.
      num_coresets: how many of them there are.
      num_used: how many of those were handed out.
    """

    indices: Array
    weights: Array
    num_coresets: int
    num_used: int

    @property
    def empty(self) -> bool:
        """Whether all coresets were handed out."""
        return self.num_used == self.num_coresets

    def discard(self) -> "CoresetBuffer":
        """Return the buffer without coresets.

        Example:
          >>> CoresetBuffer(jnp.zeros((2, 1)), jnp.ones((2, 1)), 2, 1).discard().num_coresets
          0
        """
        return self._replace(num_coresets=0, num_used=0)

    def take(self, ahead: Lookahead) -> tuple["CoresetBuffer", Array, Array]:
        """Return the buffer after one more coreset was handed out, its indices and weights [m].

        Raises:
          ValueError: when all were handed out.
        """
        _checks.require(
            not self.empty,
            f"the next mini-batch was asked for with {self.num_used} of {self.num_coresets} coresets "
            "used, which leaves none; call refresh before every next_batch.",
        )
        last = self.num_coresets - 1
        indices, weights = ahead.nth_coreset(self.indices, self.weights, self.num_used, last)
        return self._replace(num_used=self.num_used + 1), indices, weights


def empty_buffer(max_coresets: int, batch_size: int) -> CoresetBuffer:
    """Return a buffer without coresets.

    Example:
      >>> empty_buffer(4, 2).empty
      True
    """
    shape = (max_coresets, batch_size)
    return CoresetBuffer(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), 0, 0)


class CrestState(NamedTuple):
    """The state of CREST: host numbers that steer, beside device arrays.

    Attributes:
      step: batches handed out.
      interval: T1, steps between checks.
      next_check: step of the next check, or look at the scores.
      paused_until: step until which no coresets are chosen, for gradients were about equally long.
      num_regions: regions begun.
      num_selected: coresets selected.
      num_unused: coresets discarded before a step used them.
      reference_norm: ``|H_0|``, NaN until it is taken.
      curvature_norm: ``|H_l|`` of the current region.
      work: examples passed through the model, beside the training steps.
      all_finite: [], bool: all losses and embeddings scored so far were finite.
      evenness: [], of the gradients' lengths in the subset scored last; None with regions.
      key: PRNG key.
      pool: the examples that may be drawn.
      buffer: the coresets that wait for their steps.
      moments: moving averages of gradient and curvature; None without regions.
      region: the quadratic model; None without regions.
    """

    step: int
    interval: int
    next_check: int
    paused_until: int
    num_regions: int
    num_selected: int
    num_unused: int
    reference_norm: float
    curvature_norm: float
    work: Work
    all_finite: Array
    evenness: Array | None
    key: Array
    pool: Pool
    buffer: CoresetBuffer
    moments: Moments | None
    region: Region | None

    @property
    def excluded(self) -> int:
        """Number of excluded examples."""
        return self.pool.excluded


class Event(NamedTuple):
    """What a refresh did; all fields are Python values.

    Attributes:
      step: batches handed out before.
      reason: "start", "error" (rho above tau) or "nonfinite": a region began; "kept": the region was
        checked, or coresets were added to it, and goes on; "span_start": without regions, coresets are
        chosen at every step from here on; "span_end": mini-batches are random from here on; "paused":
        they are for a while, for gradients are about equally long; "resumed": coresets are chosen
        again; "window": between mini-batches, examples were excluded or returned.
      began_region: whether a region began.
      num_regions: number of the current region, from 1.
      rho: relative error of the quadratic model, None without a check.
      rho_unchanged: what that of a model were that predicts no change; below ``rho``, the quadratic
        model is worse than none.
      loss: mean loss of the probe examples now, None when not measured.
      evenness: of the gradients' lengths, see ``CrestConfig.pause_above``, where a pause begins or ends
        or another event falls on a look at them, every 32 steps; None elsewhere.
      interval: T1, steps.
      coresets: coresets selected now.
      num_selected: coresets selected so far.
      num_unused: coresets discarded so far.
      excluded: number of excluded examples.
      curvature_norm: norm of the Hessian's diagonal in the current region; None without regions.
      work: examples passed through the model so far, beside the training steps.
    """

    step: int
    reason: Reason
    began_region: bool
    num_regions: int
    rho: float | None
    rho_unchanged: float | None
    loss: float | None
    evenness: float | None
    interval: int
    coresets: int
    num_selected: int
    num_unused: int
    excluded: int
    curvature_norm: float | None
    work: Work


def event_of(
    state: CrestState,
    reason: Reason,
    *,
    rho: float | None = None,
    rho_unchanged: float | None = None,
    loss: float | None = None,
    evenness: float | None = None,
    coresets: int = 0,
) -> Event:
    """Return what is told of a state."""
    return Event(
        step=state.step,
        reason=reason,
        began_region=reason in ("start", "error", "nonfinite"),
        num_regions=state.num_regions,
        rho=rho,
        rho_unchanged=rho_unchanged,
        loss=loss,
        evenness=evenness,
        interval=state.interval,
        coresets=coresets,
        num_selected=state.num_selected,
        num_unused=state.num_unused,
        excluded=state.excluded,
        curvature_norm=None if state.region is None else state.curvature_norm,
        work=state.work,
    )


def count_work(state: Any, **passes: int) -> Any:
    """Add examples passed through the model to the counters of ``Work``.

    Example:
      >>> class Counted(NamedTuple):
      ...     work: Work
      >>> count_work(Counted(Work()), check_forward=3).work.check_forward
      3
    """
    counts = {name: getattr(state.work, name) + more for name, more in passes.items()}
    return state._replace(work=state.work._replace(**counts))
