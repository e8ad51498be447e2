"""Which examples may be drawn, and the draws: random, stratified by class, of the active examples."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.chunks import ALWAYS, draw_several
from crest_jax.data.classes import Classes
from crest_jax.data.devices import place, read_numbers
from crest_jax.data.exclusion import (
    Exclusion,
    ExclusionConfig,
    all_active,
    end_window,
    importance_weights,
    init_exclusion,
    observe_losses,
    share_drawn,
)
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.quotas import rows_needed
from crest_jax.data.sampler import Inactive, RowStream, new_pass, next_subset, open_stream
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
      exclusion: who is excluded, and what was observed.
      window_end: step at which the window closes.
      excluded: number of excluded examples.
      largest_share: share of the largest class among the examples that are drawn from.
    """

    stream: RowStream
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

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> rules.needed.tolist()
      [1, 1]
    """
    strata = make_strata(classes.codes, classes.number, mesh=mesh)
    needed = rows_needed(classes.codes, classes.number, largest_draw)
    share = float(np.bincount(classes.codes).max() / len(classes.codes))
    return PoolRules(strata, needed, share, exclusion, capacity, skip_nonfinite, mesh)


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
    if own is not None:
        # Nothing was observed, so this changes nothing, and compiles now what a later window needs.
        exclusion = _ended(rules, exclusion)[0]
    stream = place(open_stream(key, num_classes), rules.mesh)
    return Pool(stream, exclusion, 0 if own is None else own.window, 0, rules.largest_share)


@partial(jax.jit, static_argnames=("size", "keep"))
def weighted_subset(
    stream: RowStream, strata: Strata, left_at: Array, counts: Array, size: int, keep: float
) -> tuple[RowStream, Array, Array]:
    """Draw indices [size], as ``sampler.next_subset``, with what each stands for [size].

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> strata, stream = make_strata(np.zeros(2, int), 1), open_stream(jax.random.key(0), 1)
      >>> weighted_subset(stream, strata, jnp.zeros(2, jnp.int8), jnp.zeros(1, int), 2, 0.5)[2].tolist()
      [1.0, 1.0]
    """
    stream, indices = next_subset(stream, strata, size, Inactive(left_at, counts), keep)
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
    inactive = pool.exclusion.inactive
    share = share_drawn(rules.exclusion)
    found = one(pool.stream, rules.strata, inactive.left_at, inactive.counts, size, share)
    stream, indices, weights = found
    return pool._replace(stream=stream), indices, weights


def draw_many(rules: PoolRules, pool: Pool, size: int, number: int) -> tuple[Pool, Array, Array]:
    """Draw as many times as asked, as ``draw``: indices and weights [number, size].

    Example:
      >>> from crest_jax.data.classes import classes_of
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=1, exclusion=None, capacity=1)
      >>> sorted(draw_many(rules, open_pool(rules, jax.random.key(0)), 1, 2)[1].ravel().tolist())
      [0, 1]
    """
    inactive, settings = pool.exclusion.inactive, (size, share_drawn(rules.exclusion))
    stream, indices, weights = draw_several(
        weighted_subset, number, settings, pool.stream, rules.strata, inactive.left_at, inactive.counts
    )
    return pool._replace(stream=stream), indices, weights


def observe(rules: PoolRules, pool: Pool, indices: Array, losses: Any) -> Pool:
    """Note the losses [b] of a training step, or [k, b] of several; see ``exclusion.observe_losses``.

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
    if not rules.excludes(step):
        # A new pass, in which all of them come.
        return pool._replace(
            exclusion=all_active(pool.exclusion),
            excluded=0,
            largest_share=rules.largest_share,
            stream=new_pass(pool.stream),
        )
    assert rules.exclusion is not None
    exclusion, *told = _ended(rules, pool.exclusion)
    finite, excluded, share = read_numbers(pool.exclusion.all_finite, *told)
    if not (rules.skip_nonfinite or finite):
        raise FloatingPointError(
            "a loss handed to observe was NaN or infinite in the window before step "
            f"{step} but all must be finite; lower the learning rate, look for bad inputs, or "
            'count such losses as high with nonfinite="skip".'
        )
    return pool._replace(
        exclusion=exclusion,
        window_end=step + rules.exclusion.window,
        excluded=excluded,
        largest_share=share,
    )


def _ended(rules: PoolRules, exclusion: Exclusion) -> tuple[Exclusion, Array, Array]:
    strata, own = rules.strata, rules.exclusion
    assert own is not None
    settings = own.cooldown, own.keep_fraction
    return end_window(exclusion, strata.classes, strata.sizes, rules.needed, *settings)
