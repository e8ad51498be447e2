"""Which examples may be drawn, and the draws: random, stratified by class, of the active examples."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.chunks import ALWAYS, draw_several
from crest_jax.data.classes import Classes
from crest_jax.data.devices import place, read_numbers
from crest_jax.data.exclusion import (
    MOST_OBSERVATIONS,
    Exclusion,
    ExclusionConfig,
    all_active,
    close_window,
    importance_weights,
    init_exclusion,
    observe_losses,
    share_drawn,
)
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.quotas import rows_needed
from crest_jax.data.sampler import (
    InPlay,
    RowStream,
    all_in_play,
    new_pass,
    next_subset,
    open_stream,
    rearranged,
)
from crest_jax.data.strata import Strata, make_strata
from crest_jax.types import Array


class PoolRules(NamedTuple):
    """What never changes about a pool in a run.

    Attributes:
      strata: the examples by class.
      needed: [c], int32: examples of each class that the largest draw needs.
      largest_share: share of the largest class among all examples.
      exclusion: what becomes of learned examples; None: all stay active.
      capacity: observations that a window holds.
      skip_nonfinite: whether a NaN or infinite loss counts as high instead of stopping the run.
      mesh: the devices that the state lies on; None: one.
    """

    strata: Strata
    needed: Array
    largest_share: float
    exclusion: ExclusionConfig | None
    capacity: int
    skip_nonfinite: bool
    mesh: Mesh | None

    def excludes(self, step: int) -> bool:
        """Return whether examples may be excluded at a step."""
        until = None if self.exclusion is None else self.exclusion.until
        return self.exclusion is not None and (until is None or step < until)


class Pool(NamedTuple):
    """The examples that may be drawn, and where the draws have come to.

    Attributes:
      stream: where the walk through the examples has come to.
      in_play: those that are drawn from; None where none is ever excluded.
      exclusion: who is excluded, and what was observed.
      window_end: step at which the window closes.
      excluded: number of excluded examples.
      largest_share: share of the largest class among the examples that are drawn from.
    """

    stream: RowStream
    in_play: InPlay | None
    exclusion: Exclusion
    window_end: int
    excluded: int
    largest_share: float


def make_rules(
    classes: Classes,
    *,
    largest_draw: int,
    exclusion: ExclusionConfig | None,
    capacity: int,
    skip_nonfinite: bool = False,
    mesh: Mesh | None = None,
) -> PoolRules:
    """Sort the examples by class, once, and note the rules.

    Of a window that would hold more than ``MOST_OBSERVATIONS`` the newest are remembered.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> rules.needed.tolist()
      [1, 1]
    """
    strata = make_strata(classes.codes, classes.number, mesh=mesh)
    needed = rows_needed(classes.codes, classes.number, largest_draw)
    share = float(np.bincount(classes.codes).max() / len(classes.codes))
    remembered = min(capacity, MOST_OBSERVATIONS)
    return PoolRules(strata, needed, share, exclusion, remembered, skip_nonfinite, mesh)


def split_key(rules: PoolRules, key: Any) -> tuple[Array, Array]:
    """Check a PRNG key, put it on the devices and split it in two.

    Raises:
      ValueError: when it is none.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> len(split_key(rules, jax.random.key(0)))
      2
    """
    first, second = jax.random.split(place(_checks.prng_key("key", key), rules.mesh))
    return first, second


def open_pool(rules: PoolRules, key: Array) -> Pool:
    """Return the pool before the first draw, all examples active.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> open_pool(rules, jax.random.key(0)).excluded
      0
    """
    strata, own = rules.strata, rules.exclusion
    cooldown = None if own is None else own.cooldown
    count, num_classes = strata.members.shape[0], strata.sizes.shape[0]
    fresh = init_exclusion(
        count,
        num_classes,
        capacity=rules.capacity,
        cooldown=cooldown,
        relative=own is not None and own.relative,
    )
    exclusion = place(fresh, rules.mesh)
    stream = place(open_stream(key, num_classes), rules.mesh)
    opened = Pool(stream, None, exclusion, 0, 0, rules.largest_share)
    if own is None:
        return opened
    opened = opened._replace(in_play=all_in_play(strata), window_end=own.window)
    # Nothing was observed, so this excludes nothing, and compiles now what a later window needs.
    stream, in_play, exclusion, _ = _ended(rules, opened)
    return opened._replace(stream=stream, in_play=in_play, exclusion=exclusion)


@partial(jax.jit, static_argnames=("size", "keep"))
def weighted_subset(
    stream: RowStream,
    strata: Strata,
    in_play: InPlay | None,
    left_at: Array,
    size: int,
    keep: float,
) -> tuple[RowStream, Array, Array]:
    """Draw indices [size], as ``sampler.next_subset``, with what each stands for [size].

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> strata, stream = make_strata(np.zeros(2, int), 1), open_stream(jax.random.key(0), 1)
      >>> weighted_subset(stream, strata, None, jnp.zeros(2, jnp.int8), 2, 0.5)[2].tolist()
      [1.0, 1.0]
    """
    stream, indices = next_subset(stream, strata, size, in_play)
    return stream, indices, importance_weights(left_at, indices, keep)


def draw(
    rules: PoolRules, pool: Pool, size: int, ahead: Lookahead | None = None
) -> tuple[Pool, Array, Array]:
    """Draw indices [size] of active examples, with what each stands for [size].

    See ``sampler.next_subset`` and ``exclusion.importance_weights``.

    Args:
      rules: what never changes.
      pool: where the draws have come to.
      size: examples to draw.
      ahead: draws and fetches the next ones, for a source that can.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> draw(rules, open_pool(rules, jax.random.key(0)), 2)[2].tolist()
      [1.0, 1.0]
    """
    one = weighted_subset if ahead is None else partial(ahead.draw, weighted_subset)
    left_at, share = pool.exclusion.inactive.left_at, share_drawn(rules.exclusion)
    stream, indices, weights = one(pool.stream, rules.strata, pool.in_play, left_at, size, share)
    return pool._replace(stream=stream), indices, weights


def draw_many(rules: PoolRules, pool: Pool, size: int, number: int) -> tuple[Pool, Array, Array]:
    """Draw as many times as asked, as ``draw``: indices and weights [number, size].

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 0]), largest_draw=1, exclusion=None, capacity=1)
      >>> sorted(draw_many(rules, open_pool(rules, jax.random.key(0)), 1, 2)[1].ravel().tolist())
      [0, 1]
    """
    left_at, settings = pool.exclusion.inactive.left_at, (size, share_drawn(rules.exclusion))
    stream, indices, weights = draw_several(
        weighted_subset, number, settings, pool.stream, rules.strata, pool.in_play, left_at
    )
    return pool._replace(stream=stream), indices, weights


def observe(rules: PoolRules, pool: Pool, indices: Array, losses: Any) -> Pool:
    """Note the losses [b] of a training step; see ``exclusion.observe_losses``.

    Example:
      >>> import jax.numpy as jnp
      >>> from crest_jax.data.classes import classes_of
      >>> own = ExclusionConfig.recommended()
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=1, exclusion=own, capacity=2)
      >>> pool = observe(rules, open_pool(rules, jax.random.key(0)), jnp.array([1]), jnp.zeros(1))
      >>> int(pool.exclusion.num_observations)
      1
    """
    assert rules.exclusion is not None
    seen = observe_losses(pool.exclusion, indices, losses, rules.exclusion.threshold)
    return pool._replace(exclusion=seen)


def due(rules: PoolRules, pool: Pool, step: int) -> bool:
    """Return whether ``close`` has something to do at ``step``.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> due(rules, open_pool(rules, jax.random.key(0)), 7)
      False
    """
    return step >= pool.window_end if rules.excludes(step) else pool.excluded > 0


def quiet(rules: PoolRules, pool: Pool, step: int) -> int:
    """Return the steps from ``step`` on before ``close`` has something to do again.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> own = ExclusionConfig.recommended(window=4)
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=1, exclusion=own, capacity=2)
      >>> quiet(rules, open_pool(rules, jax.random.key(0)), 1)
      3
    """
    if rules.exclusion is None or not rules.excludes(step):
        return ALWAYS
    until = rules.exclusion.until
    return (pool.window_end if until is None else min(pool.window_end, until)) - step


def close(rules: PoolRules, pool: Pool, step: int) -> Pool:
    """Close the window where it is over at ``step``, or make all active where exclusion is.

    Raises:
      FloatingPointError: when a loss that was handed back in the window was NaN or infinite, unless
        such are skipped.

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> own = ExclusionConfig.recommended(window=4)
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=1, exclusion=own, capacity=2)
      >>> close(rules, open_pool(rules, jax.random.key(0)), 4).window_end
      8
    """
    if not due(rules, pool, step):
        return pool
    assert rules.exclusion is not None
    if not rules.excludes(step):
        exclusion = all_active(pool.exclusion)
        return pool._replace(
            stream=new_pass(pool.stream),  # in which all of them come
            in_play=all_in_play(rules.strata),
            exclusion=exclusion,
            excluded=0,
            largest_share=rules.largest_share,
        )
    stream, in_play, exclusion, told = _ended(rules, pool)
    finite, excluded, share = read_numbers(pool.exclusion.all_finite, *told)
    if not (rules.skip_nonfinite or finite):
        raise FloatingPointError(
            "a loss handed to observe was NaN or infinite in the window before step "
            f"{step} but all must be finite; lower the learning rate, look for bad inputs, or "
            'count such losses as high with nonfinite="skip".'
        )
    end = step + rules.exclusion.window
    return Pool(stream, in_play, exclusion, end, excluded, share)


def _ended(rules: PoolRules, pool: Pool) -> tuple[RowStream, InPlay, Exclusion, tuple[Array, Array]]:
    own = rules.exclusion
    assert own is not None
    assert pool.in_play is not None
    arrays = pool.stream, pool.in_play, pool.exclusion, rules.strata, rules.needed
    return end_window(*arrays, cooldown=own.cooldown, keep=own.keep_fraction)


@partial(jax.jit, static_argnames=("cooldown", "keep"))
def end_window(
    stream: RowStream,
    in_play: InPlay,
    exclusion: Exclusion,
    strata: Strata,
    needed: Array,
    *,
    cooldown: int | None,
    keep: float,
) -> tuple[RowStream, InPlay, Exclusion, tuple[Array, Array]]:
    """Close the window, compiled; see ``exclusion.close_window`` and ``sampler.rearranged``.

    Returns:
      The first three anew; how many are excluded [], and the share [] of the largest class in play.
    """
    closed = close_window(exclusion, strata.classes, strata.sizes, needed, cooldown)
    stream, in_play = rearranged(stream, strata, in_play, closed.excluded, keep)
    sizes = in_play.sizes.astype(jnp.float32)
    excluded = jnp.sum(closed.inactive.counts, dtype=jnp.int32)
    return stream, in_play, closed, (excluded, jnp.max(sizes) / jnp.sum(sizes))
